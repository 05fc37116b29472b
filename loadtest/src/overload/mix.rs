//! What publishers say: kinds mixed as in a live room, many users, ids that are
//! never used twice.

use std::io::Write as _;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

/// A kind and its part of the traffic.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    /// Name of the kind; one that every server has.
    pub(super) kind: &'static str,
    /// Of a thousand events.
    per_mille: u32,
}

/// The mix. Presence and likes are most of what a storm consists of, money is
/// little, and important events are rare: those come from `steady`, which knows
/// of each whether it arrived.
pub(super) const MIX: [Part; 4] = [
    Part { kind: "like", per_mille: 500 },
    Part { kind: "enter", per_mille: 200 },
    Part { kind: "chat", per_mille: 240 },
    Part { kind: "gift", per_mille: 60 },
];

/// Of all users so many give: each has a combo, and a room keeps a thousand.
const GIVERS: u32 = 500;

/// One event to come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Draw {
    /// Index into [`MIX`].
    pub(super) part: usize,
    user: u32,
    number: u64,
}

/// A source of events. Two with different `source` never make the same id.
pub(super) struct Traffic {
    random: SmallRng,
    run: u64,
    source: u32,
    users: u32,
    number: u64,
}

const TEXTS: [&str; 4] = [
    "that was close, did you see it?",
    "hello from the other side of the world, first time here",
    "666",
    "can we have the link once more please, I missed it",
];

impl Traffic {
    /// Events of `users` users.
    pub(super) fn new(run: u64, source: u32, users: u32) -> Self {
        let random = SmallRng::seed_from_u64(run ^ (u64::from(source) << 40));
        Self { random, run, source, users: users.max(1), number: 0 }
    }

    /// The next event.
    pub(super) fn draw(&mut self) -> Draw {
        let mut at = self.random.random_range(0..1_000);
        let mut part = 0;
        while at >= MIX[part].per_mille {
            at -= MIX[part].per_mille;
            part += 1;
        }
        self.number += 1;
        let users = if MIX[part].kind == "gift" { GIVERS.min(self.users) } else { self.users };
        Draw { part, user: self.random.random_range(0..users), number: self.number }
    }

    /// Its id.
    pub(super) fn id(&self, draw: Draw) -> String {
        format!("{:x}-{:x}-{:x}", self.run, self.source, draw.number)
    }

    /// Who sends it.
    pub(super) fn user(draw: Draw) -> String {
        format!("u{}", draw.user)
    }

    /// What it says, as JSON.
    pub(super) fn payload(draw: Draw) -> String {
        match MIX[draw.part].kind {
            "chat" => {
                let text = TEXTS[(draw.number % 4) as usize];
                format!("{{\"text\":\"{text}\",\"name\":\"viewer {}\"}}", draw.user)
            }
            "gift" => format!("{{\"gift\":\"rose\",\"name\":\"viewer {}\"}}", draw.user),
            "enter" => format!("{{\"name\":\"viewer {}\"}}", draw.user),
            _ => "null".to_owned(),
        }
    }

    /// What it merges by, and what it adds.
    pub(super) fn sum(draw: Draw) -> Option<(&'static str, i64)> {
        match MIX[draw.part].kind {
            "like" => Some(("likes", 1 + i64::from(draw.user % 9))),
            "gift" => Some(("rose", 1)),
            _ => None,
        }
    }

    /// Appends it to a request's body, a comma before it unless it is the first.
    pub(super) fn write(&self, body: &mut Vec<u8>, draw: Draw) {
        if body.last() != Some(&b'[') {
            body.push(b',');
        }
        // Writing to a Vec cannot fail.
        let _ = write!(
            body,
            "{{\"id\":\"{:x}-{:x}-{:x}\",\"kind\":\"{}\",\"user\":\"u{}\",\"payload\":{}",
            self.run,
            self.source,
            draw.number,
            MIX[draw.part].kind,
            draw.user,
            Self::payload(draw)
        );
        if let Some((key, amount)) = Self::sum(draw) {
            let _ = write!(body, ",\"key\":\"{key}\",\"amount\":{amount}");
        }
        body.push(b'}');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mix_is_whole_and_kept_and_ids_are_unique() {
        assert_eq!(MIX.iter().map(|part| part.per_mille).sum::<u32>(), 1_000);
        let mut traffic = Traffic::new(7, 1, 1_000);
        let mut counts = [0_u32; MIX.len()];
        let mut ids = std::collections::HashSet::new();
        for _ in 0..100_000 {
            let draw = traffic.draw();
            counts[draw.part] += 1;
            assert!(ids.insert(traffic.id(draw)));
        }
        for (count, part) in counts.iter().zip(MIX) {
            let wanted = f64::from(part.per_mille) * 100.0;
            assert!((f64::from(*count) - wanted).abs() < wanted * 0.1, "{}", part.kind);
        }
        let other = Traffic::new(7, 2, 1_000).draw();
        assert!(!ids.contains(&Traffic::new(7, 2, 1_000).id(other)));
    }

    #[test]
    fn a_body_is_what_the_interface_takes() {
        let mut traffic = Traffic::new(1, 1, 10);
        let mut body = b"{\"events\":[".to_vec();
        for _ in 0..50 {
            let draw = traffic.draw();
            traffic.write(&mut body, draw);
        }
        body.extend_from_slice(b"]}");
        let value: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let events = value["events"].as_array().unwrap();
        assert_eq!(events.len(), 50);
        let sums = events.iter().filter(|event| event.get("amount").is_some()).count();
        assert!(sums > 10 && events.iter().all(|event| event["user"].is_string()));
    }
}
