//! One room beside its model, by a list of steps that shrinks.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use tidegate::engine::event::{Event, Payload};
use tidegate::engine::ids::{Epoch, RoomId, Seq};
use tidegate::engine::kind::{Kind, Lane};
use tidegate::engine::level::LevelKey;
use tidegate::engine::room::Room;

use super::model::Model;
use super::rng::Rng;
use super::world::{START, assert_same, kinds, settings};

#[derive(Debug, Clone)]
enum Step {
    Publish { id: u8, kind: usize, user: u8, key: u8, amount: Option<i64>, len: usize },
    Pass { ms: u64 },
    FlushNow,
    FrameOut,
    Viewers(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let amount = prop::option::of(prop_oneof![4 => -5i64..20, 1 => (1i64 << 52)..(1 << 53)]);
    let publish = (any::<u8>(), 0usize..14, 0u8..4, 0u8..3, amount, 0usize..200);
    prop_oneof![
        12 => publish.prop_map(|(id, kind, user, key, amount, len)| {
            Step::Publish { id, kind, user, key, amount, len }
        }),
        3 => (0u64..400).prop_map(|ms| Step::Pass { ms }),
        2 => Just(Step::FlushNow),
        2 => Just(Step::FrameOut),
        1 => (0u32..40).prop_map(Step::Viewers),
    ]
}

fn event(step: &Step, kinds: &[Arc<Kind>], now: tidegate::engine::time::Time) -> Option<Event> {
    let &Step::Publish { id, kind, user, key, amount, len } = step else { return None };
    // Nothing at all is a null payload.
    let payload = Payload { bytes: Bytes::from(vec![b'x'; len]), json: false };
    Some(Event {
        id: format!("e{id}").into(),
        kind: Arc::clone(&kinds[kind]),
        user: format!("u{user}").into(),
        payload,
        key: (key > 0).then(|| format!("k{key}").into()),
        amount,
        ttl: None,
        received: now,
        mark: None,
    })
}

proptest! {
    // A failing list is short enough to become a test of its own.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_room_does_what_its_model_does(
        seed in any::<u64>(),
        max_keys in 1usize..5,
        buffer_events in 1usize..12,
        steps in prop::collection::vec(step(), 0..120),
    ) {
        let mut settings = settings(&mut Rng(seed));
        (settings.max_keys, settings.buffer_events) = (max_keys, buffer_events);
        let (id, epoch) = (RoomId::new("live:1").expect("a valid name"), Epoch(1));
        let key = LevelKey::from_seed(u128::from(seed));
        let mut model = Model::new(id.clone(), epoch, key, settings.clone());
        let mut room = Room::new(id, epoch, key, Arc::new(settings.clone()), START);
        let (kinds, mut now) = (kinds(), START);
        for step in steps {
            if let Some(event) = event(&step, &kinds, now) {
                prop_assert_eq!(room.publish(event.clone(), now), model.publish(event, now));
            }
            match step {
                Step::Publish { .. } => {}
                Step::Pass { ms } => now = now + Duration::from_millis(ms),
                Step::FlushNow => {
                    if let Some(frame) = room.flush_now(now) {
                        assert_same(frame, model.flush(now));
                    }
                }
                Step::FrameOut => room.frame_out(now),
                Step::Viewers(viewers) => {
                    room.set_online(viewers, now);
                    model.set_online(viewers);
                }
            }
            prop_assert_eq!(room.snapshot(now), model.snapshot(now));
            let replay = room.history_after_seq(Seq(0), 50);
            prop_assert_eq!(replay, model.replay_after_seq(0, 50));
            prop_assert!(room.memory_bytes() <= Room::memory_bound(&settings));
        }
        room.frame_out(now);
        if let Some(frame) = room.flush_now(now) {
            assert_same(frame, model.flush(now));
        }
        for lane in Lane::ALL {
            prop_assert_eq!(room.stats().pending(lane), 0);
        }
    }
}
