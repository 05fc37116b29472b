//! Opens the log of important events and hands each shard the rooms that it
//! left behind.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tracing::{info, warn};

use crate::config::Config;
use crate::engine::ids::{RoomId, ShardId};
use crate::engine::kind::{Kind, Kinds, Lane};
use crate::engine::room::Restored;
use crate::engine::time::Time;
use crate::log::{KindOf, Log, LogSettings, Recovered, RestoredRoom, Retention};
use crate::shard::peers::{LocalShards, Message, Path as _, Placement as _};

/// Rooms of an earlier process, for one shard, and when each was last used.
pub(super) type Left = Vec<(RoomId, Restored, Time)>;

/// The log, and what each shard finds in it.
pub(super) struct Opened {
    pub(super) log: Arc<Log>,
    pub(super) rooms: Vec<Left>,
}

/// Opens the log, unless the configuration has none.
pub(super) fn open(
    config: &Config,
    kinds: &Arc<Kinds>,
    peers: &Arc<LocalShards>,
    now: Time,
) -> anyhow::Result<Option<Opened>> {
    if !config.durable.is_on() {
        info!("durable.directory is empty: important events are kept in memory only");
        return Ok(None);
    }
    let to_shards = Arc::clone(peers);
    let done = Box::new(move |logged: crate::log::Logged| {
        to_shards.send(logged.shard, Message::Logged(logged));
    });
    let (log, recovered) =
        Log::open(settings(config), kind_of(kinds), now, done).context("durable.directory")?;
    let Recovered { rooms, report } = recovered;
    if report.is_clean() {
        info!(rooms = rooms.len(), "log opened");
    } else {
        warn!(rooms = rooms.len(), %report, "log opened, and not all of it could be read");
    }
    let mut left: Vec<Left> = (0..peers.count()).map(|_| Vec::new()).collect();
    for room in rooms {
        let ShardId(home) = peers.home_of(&room.room);
        left[usize::from(home)].push(restored(room));
    }
    Ok(Some(Opened { log: Arc::new(log), rooms: left }))
}

fn settings(config: &Config) -> LogSettings {
    let (durable, rooms) = (&config.durable, &config.rooms);
    LogSettings {
        segment_bytes: durable.segment_bytes,
        retention: Retention {
            age: Duration::from_millis(durable.retention_ms),
            events_per_room: durable.room_events,
            bytes_per_room: durable.room_bytes,
            total_bytes: durable.total_bytes,
            ..Retention::default()
        },
        queue_bytes: durable.queue_bytes,
        ids_per_room: rooms.dedupe_sequenced,
        tail_events: rooms.history_important,
        tail_bytes: rooms.history_important_bytes,
        ..LogSettings::new(&durable.directory)
    }
}

/// What is in the log was important when it was written, whatever its kind is
/// now.
fn kind_of(kinds: &Arc<Kinds>) -> KindOf {
    let kinds = Arc::clone(kinds);
    Arc::new(move |name| {
        let kind = kinds.resolve(name);
        if kind.lane == Lane::Important {
            return kind;
        }
        Arc::new(Kind { lane: Lane::Important, ..Kind::clone(&kind) })
    })
}

fn restored(room: RestoredRoom) -> (RoomId, Restored, Time) {
    let RestoredRoom { room: id, epoch, seq, important, last_used, ids, tail, former: _ } = room;
    (id, Restored { epoch, seq, important, ids, tail }, last_used)
}
