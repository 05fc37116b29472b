//! Metrics of overload control.

use super::{Scrape, Text};
use crate::engine::admission::Shed;
use crate::shard::stats::{IntakeStats, ShardStats};

/// Name, help and value of a number per shard.
type Gauge = (&'static str, &'static str, fn(&IntakeStats) -> f64);
/// Name, help and counts by reason and tier.
type Table = (&'static str, &'static str, fn(&IntakeStats) -> &[[u64; 64]; 3]);

pub(super) fn overload(text: &mut Text, total: &ShardStats, scrape: &Scrape<'_>) {
    text.histogram(
        "tidegate_event_queueing_seconds",
        "From an event's arrival at the socket to its room.",
        &total.queueing,
    );
    tiers(text, scrape);
    text.gauge("tidegate_joins_waiting", "New joins waiting in line.", total.joins_waiting as f64);
    let name = "tidegate_admission_level";
    text.head(
        name,
        "gauge",
        "The admission level: last tier, last user level of it, share of that.",
    );
    each(scrape, |shard, intake| {
        let parts = [
            ("business", f64::from(intake.level.business())),
            ("user", f64::from(intake.level.user())),
            ("share", intake.level.share()),
        ];
        for (part, value) in parts {
            text.sample(name, &[("shard", shard), ("part", part)], value);
        }
    });
    let gauges: [Gauge; 8] = [
        ("tidegate_admission_pinned", "Whether the level is an operator's.", |intake| {
            if intake.pinned { 1.0 } else { 0.0 }
        }),
        (
            "tidegate_ladder_rung",
            "What is given up: 0 nothing, 1 stretch, 2 thin, 3 trim, 4 refuse, 5 hold joins.",
            |intake| intake.rung as u8 as f64,
        ),
        (
            "tidegate_admission_load",
            "Work that arrived in the last window, refused or not, as a multiple of the capacity.",
            |intake| intake.load,
        ),
        (
            "tidegate_admission_capacity",
            "Estimated work done per busy second; 1 when estimates are exact.",
            |intake| intake.capacity,
        ),
        (
            "tidegate_admission_slowed",
            "Whether requests take half as long again as they did, or longer, and for a minute \
             after: what fits may wait for longer then.",
            |intake| f64::from(u8::from(intake.slowed)),
        ),
        ("tidegate_admission_waiting_events", "Events waiting in the admission queue.", |intake| {
            intake.waiting as f64
        }),
        (
            "tidegate_admission_backlog_seconds",
            "Time that the admission queue takes to empty.",
            |intake| intake.backlog_micros as f64 / 1e6,
        ),
        (
            "tidegate_admission_rooms_beyond_share",
            "Rooms that ask for more than their fair share and yield to others.",
            |intake| intake.rooms_beyond_share as f64,
        ),
    ];
    for (name, help, value) in gauges {
        text.head(name, "gauge", help);
        each(scrape, |shard, intake| text.sample(name, &[("shard", shard)], value(intake)));
    }
    let name = "tidegate_cost_seconds";
    text.head(name, "gauge", "Learned cost of taking an event in, and of a write of 512 bytes.");
    each(scrape, |shard, intake| {
        for (of, micros) in [("event", intake.event_micros), ("write", intake.write_micros)] {
            text.sample(name, &[("shard", shard), ("of", of)], micros / 1e6);
        }
    });
}

/// What became of events by tier. Only tiers that were ever used are shown, and
/// the first, so that the names are there from the start.
fn tiers(text: &mut Text, scrape: &Scrape<'_>) {
    let sum = |count: fn(&IntakeStats, usize) -> u64, tier: usize| -> u64 {
        scrape.shards.iter().map(|shard| count(&shard.intake, tier)).sum()
    };
    let offered = |tier| sum(|intake, tier| intake.admission.offered[tier], tier);
    let used: Vec<usize> = (0..64).filter(|tier| *tier == 0 || offered(*tier) > 0).collect();
    let name = "tidegate_admission_offered_total";
    text.head(name, "counter", "Events that wanted in, by tier.");
    for tier in &used {
        text.sample(name, &[("tier", &tier.to_string())], offered(*tier) as f64);
    }
    let name = "tidegate_admission_admitted_total";
    text.head(name, "counter", "Events that went to their rooms, by tier.");
    for tier in &used {
        let started = sum(|intake, tier| intake.admission.started[tier], *tier);
        text.sample(name, &[("tier", &tier.to_string())], started as f64);
    }
    let tables: [Table; 2] = [
        (
            "tidegate_admission_refused_total",
            "Events refused by overload control, by tier and reason.",
            |intake| &intake.admission.shed,
        ),
        (
            "tidegate_admission_would_refuse_total",
            "Events a dry run let pass, by tier and reason.",
            |intake| &intake.admission.would_shed,
        ),
    ];
    for (name, help, table) in tables {
        text.head(name, "counter", help);
        for tier in &used {
            for reason in Shed::ALL {
                let count: u64 = scrape
                    .shards
                    .iter()
                    .map(|shard| table(&shard.intake)[reason as usize][*tier])
                    .sum();
                let labels = [("tier", tier.to_string()), ("reason", reason.name().to_owned())];
                let labels = labels.each_ref().map(|(name, value)| (*name, value.as_str()));
                text.sample(name, &labels, count as f64);
            }
        }
    }
}

fn each(scrape: &Scrape<'_>, mut show: impl FnMut(&str, &IntakeStats)) {
    for (index, shard) in scrape.shards.iter().enumerate() {
        show(&index.to_string(), &shard.intake);
    }
}
