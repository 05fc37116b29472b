//! A viewer in small: joins a room, says hello, and prints what happens.
//!
//! ```text
//! tidegate serve &
//! cargo run --example viewer -- demo \
//!     "$(tidegate token --user mara --room demo)" ws://127.0.0.1:7400
//! ```

use anyhow::Context as _;
use tidegate::viewer::{Happening, NewEvent, Options, Trust, Viewer};

async fn watch(room: &str, token: &str, url: &str) -> anyhow::Result<()> {
    // A server for development has a certificate of its own; do not do this with
    // one that is not on this machine.
    let trust = Trust::Anything;
    let viewer = Viewer::connect(Options { trust, ..Options::new(url) })?;
    let mut room = viewer.join(room, token).await?;
    println!("connected by {:?}", viewer.transport());
    let hello = tokio::spawn(room.publish(NewEvent::json("chat", &"hello")?));
    while let Some(happening) = room.next().await {
        match happening {
            Happening::Event(event) => println!("{} {:?}", event.kind, event.payload),
            Happening::Totals(totals) => println!("{totals:?}"),
            Happening::Gap(gap) => println!("did not get #{} to #{}", gap.first_seq, gap.last_seq),
            Happening::Disconnected { why, again_in } => println!("{why}; again in {again_in:?}"),
            Happening::Ended(end) => println!("over: {end:?}"),
            _ => {}
        }
    }
    println!("said hello: {:?}", hello.await?);
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [room, token, url] = &arguments[..] else {
        anyhow::bail!("viewer ROOM TOKEN URL");
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("no runtime")?.block_on(watch(room, token, url))
}
