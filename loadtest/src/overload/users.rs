//! A million distinct users: one event of each, and what the server's memory
//! does meanwhile. Every store that knows users has a bound, so memory may grow
//! until they are full and not after.

use anyhow::{Context as _, Result, bail};
use memchr::memmem;

use super::real::Options;
use crate::http::Client;
use crate::report::{Output, Section};
use crate::run::{Deadline, Progress, RunOptions};
use crate::server::Server;
use crate::sys;
use crate::token::Signer;

/// Events of one request: as many as a server takes.
const BATCH: u64 = 1_000;
/// Rooms that they go to.
const ROOMS: u64 = 8;
/// What memory may grow by in the second half, in MiB: the stores are full by
/// then, and a hundred bytes for each of half a million users would be 48. What
/// is resident goes up and down by 10 from run to run, whatever the number of
/// users, as the allocator gives pages back when it sees fit.
const MOST_GROWTH_MIB: f64 = 16.0;
/// Kinds by which users are remembered in different places: rates and ids, sums
/// by user and key, samples.
const KINDS: [&str; 4] = ["chat", "like", "gift", "enter"];

/// Publishes one event of each of `users` users.
pub(super) fn command(options: &Options, users: u64, run: &RunOptions) -> Result<()> {
    let deadline = Deadline::arm(run.max_seconds);
    let mut progress = Progress::new(run.quiet);
    let (_, client_cpus) = options.server.processors()?;
    sys::pin(&client_cpus)?;
    // Every store that knows users is in use, and nothing is refused before it
    // gets there.
    let settings = options.server.with("limits.user_events_per_second=50");
    let server = Server::start(&settings.with("admission.dry_run=true"), 0, deadline)?;
    let pid = server.pid().context("the server's process is not known")?;
    let token = Signer::new(&server.secret).application("users")?;
    let mut client = Client::new(server.addr, Some(token));
    let rss = || sys::exact_rss_kib(pid).unwrap_or(0) as f64 / 1024.0;
    let (begun, empty) = (sys::mono_us(), rss());
    let mut half = empty;
    let mut most = empty;
    let (mut sent, mut accepted) = (0, 0);
    while sent < users {
        deadline.check("publishing")?;
        let count = BATCH.min(users - sent);
        let events: Vec<String> = (sent..sent + count).map(event).collect();
        let body = format!("{{\"events\":[{}]}}", events.join(","));
        let path = format!("/v1/rooms/users-{begun:x}-{}/events", sent / BATCH % ROOMS);
        let (status, answer) = client.post(&path, body.as_bytes())?;
        if status != 200 {
            bail!("{status} {}", String::from_utf8_lossy(&answer));
        }
        accepted += memmem::find_iter(&answer, b"\"accepted\"").count();
        if sent < users / 2 && sent + count >= users / 2 {
            half = rss();
        }
        sent += count;
        if sent.is_multiple_of(50 * BATCH) {
            most = most.max(sys::rss_kib(pid).unwrap_or(0) as f64 / 1024.0);
            progress.tell(&format!("{sent} users"));
        }
    }
    let (end, seconds) = (rss(), (sys::mono_us() - begun) as f64 / 1e6);
    progress.end();
    let (grown, holds) = (end - half, end - half <= MOST_GROWTH_MIB);
    let mut output = Output::new("overload");
    output.print(
        Section::new("distinct users")
            .line("published", format!("one event of each of {users} users in {seconds:.1} s"))
            .line(
                "accepted",
                format!("{accepted}; gifts of further users need keys a room has not"),
            )
            .line(
                "memory",
                format!("{empty:.1} MiB empty, {half:.1} after half of them, {end:.1} after all"),
            )
            .line("at most", format!("{:.1} MiB", most.max(end)))
            .line(
                if holds { "PASS" } else { "FAIL" },
                format!("{grown:.1} MiB for the second half (at most {MOST_GROWTH_MIB})"),
            ),
    );
    output.figure("users", users as f64);
    output.figure("accepted", accepted as f64);
    output.figure("rss_empty_mib", empty);
    output.figure("rss_half_mib", half);
    output.figure("rss_end_mib", end);
    output.finish(run)
}

fn event(user: u64) -> String {
    let kind = KINDS[(user % 4) as usize];
    format!(
        "{{\"id\":\"{user}\",\"kind\":\"{kind}\",\"user\":\"user-{user}\",\"key\":\"k\",\
         \"amount\":1,\"payload\":null}}"
    )
}
