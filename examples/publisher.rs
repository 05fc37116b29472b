//! An upstream service in small: publishes chat of many users to a room and says
//! every second what became of it.
//!
//! ```text
//! tidegate serve &
//! cargo run --example publisher -- --rate 500 \
//!     --token "$(tidegate token --user im --role publisher --room demo)"
//! ```

use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use tidegate::client::{Content, NewEvent, Publisher, PublisherSettings, PublisherStats};
use tidegate::engine::ids::RoomId;
use tokio::time::{MissedTickBehavior, interval};

#[derive(Parser)]
struct Arguments {
    /// The server.
    #[arg(long, default_value = "http://127.0.0.1:7400")]
    url: String,
    /// A token with the role `publisher`.
    #[arg(long)]
    token: String,
    /// The room.
    #[arg(long, default_value = "demo")]
    room: String,
    /// Events a second.
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// Seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u32,
}

async fn publish(arguments: Arguments) -> anyhow::Result<()> {
    let room = RoomId::new(&arguments.room)?;
    let publisher = Publisher::start(PublisherSettings::new(&arguments.url, &arguments.token))?;
    // Ids must differ from those of the last run, or they would be recognised.
    let run: u64 = rand::random();
    let mut ticks = interval(Duration::from_secs(1) / arguments.rate.max(1));
    // What was missed while the machine was busy is not made up for in a burst.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for n in 0..u64::from(arguments.rate.max(1)) * u64::from(arguments.seconds) {
        ticks.tick().await;
        let mut event = NewEvent::new(format!("{run:016x}-{n}"), "chat");
        event.user = format!("user-{}", n % 1_000);
        event.payload = Content::json(&format!("message {n}"))?;
        // Chat that is late is not worth sending.
        event.ttl = Some(Duration::from_secs(2));
        // A full queue is counted; the receipt is for those who must know.
        let _ = publisher.publish(&room, event).map(drop);
        if (n + 1) % u64::from(arguments.rate.max(1)) == 0 {
            show(&publisher.stats());
        }
    }
    show(&publisher.close().await);
    Ok(())
}

fn show(stats: &PublisherStats) {
    println!(
        "{} taken: {} accepted, {} rejected {:?}, {} shed here, {} expired, {} displaced, {} failed, \
         {} held; {} requests, {} probes, {} retries, {} refused by a full queue",
        stats.taken,
        stats.accepted,
        stats.rejections(),
        stats.rejected,
        stats.shed_locally,
        stats.expired,
        stats.displaced,
        stats.failed,
        stats.held(),
        stats.requests,
        stats.caller.probes,
        stats.caller.retries,
        stats.queue_full,
    );
}

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("no runtime")?.block_on(publish(Arguments::parse()))
}
