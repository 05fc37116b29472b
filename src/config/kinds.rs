//! `[kinds.NAME]`: the rules of one kind of event, and the kinds that exist
//! without configuration.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::section;
use crate::engine::ids::Tier;
use crate::engine::kind::{Ack, Kind, Lane, Merge, MergeBy};

section! {
/// The rules of one kind, and the pattern for unknown names in `[unknown_kind]`.
///
/// A built-in kind keeps what a file does not mention, except that a new `merge`
/// starts without the old one's `by`, `n` and `idle_reset_ms`.
pub struct KindConfig {
    /// Which promise: `important` (kept, acknowledged, sent again), `ordered`
    /// (numbered, may be shed with a notice), `sampled` (may be merged or dropped
    /// freely). Default `ordered`.
    pub lane: LaneName = LaneName::Ordered,
    /// How pending events become fewer: `append`, `sum`, `latest`, `sample`.
    /// Default `append`.
    pub merge: MergeName = MergeName::Append,
    /// What `sum` and `latest` merge by. Absent: `key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<MergeKeyName> = None,
    /// How many events of one flush `sample` keeps. Required there, and only
    /// there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n: Option<usize> = None,
    /// Business priority, 0 (highest) to 63. Default 63.
    pub tier: u8 = Tier::LOWEST.0,
    /// Milliseconds after which an event is not worth sending. Default 0: always
    /// worth it.
    pub ttl_ms: u64 = 0,
    /// Bytes of a payload at most. Default 4096.
    pub max_payload_bytes: usize = 4_096,
    /// Whether viewers may publish it. Default `false`.
    pub viewer_publish: bool = false,
    /// When the publisher of an important event is answered: `logged`, once it
    /// is on disk, or `received`, at once; what then cannot be logged is dropped
    /// and counted. Default `logged`.
    pub ack: AckName = AckName::Logged,
    /// For `sum` by `user_key`: milliseconds without an event after which a combo
    /// is over and its total forgotten. Default 0: never.
    pub idle_reset_ms: u64 = 0,
}
}

/// Name of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LaneName {
    /// See [`Lane::Important`].
    Important,
    /// See [`Lane::Ordered`].
    Ordered,
    /// See [`Lane::Sampled`].
    Sampled,
}

/// Name of the moment of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AckName {
    /// See [`Ack::Logged`].
    Logged,
    /// See [`Ack::Received`].
    Received,
}

/// Name of a merge rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MergeName {
    /// See [`Merge::Append`].
    Append,
    /// See [`Merge::Sum`].
    Sum,
    /// See [`Merge::Latest`].
    Latest,
    /// See [`Merge::Sample`].
    Sample,
}

/// Name of what events are merged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MergeKeyName {
    /// See [`MergeBy::Key`].
    Key,
    /// See [`MergeBy::UserKey`].
    UserKey,
}

impl KindConfig {
    /// As the engine takes it.
    #[must_use]
    pub fn to_kind(&self, name: &str) -> Kind {
        let by = match self.by {
            None | Some(MergeKeyName::Key) => MergeBy::Key,
            Some(MergeKeyName::UserKey) => MergeBy::UserKey,
        };
        Kind {
            name: name.into(),
            lane: match self.lane {
                LaneName::Important => Lane::Important,
                LaneName::Ordered => Lane::Ordered,
                LaneName::Sampled => Lane::Sampled,
            },
            merge: match self.merge {
                MergeName::Append => Merge::Append,
                MergeName::Sum => Merge::Sum(by),
                MergeName::Latest => Merge::Latest(by),
                MergeName::Sample => Merge::Sample(self.n.unwrap_or(1)),
            },
            tier: Tier(self.tier),
            ttl: some_millis(self.ttl_ms),
            max_payload_bytes: self.max_payload_bytes,
            ack: match self.ack {
                AckName::Logged => Ack::Logged,
                AckName::Received => Ack::Received,
            },
            viewer_publish: self.viewer_publish,
            idle_reset: some_millis(self.idle_reset_ms),
        }
    }
}

fn some_millis(millis: u64) -> Option<Duration> {
    (millis > 0).then(|| Duration::from_millis(millis))
}

/// The kinds of an ordinary live room. Money and state stand above talk, talk
/// above presence: what is shed first is what nobody would miss.
pub(super) fn built_in() -> BTreeMap<String, KindConfig> {
    use LaneName::{Important, Ordered, Sampled};
    use MergeName::{Append, Latest, Sample, Sum};
    let kind = |lane, merge, tier, max_payload_bytes| KindConfig {
        lane,
        merge,
        tier,
        max_payload_bytes,
        ..KindConfig::default()
    };
    let important = |merge| kind(Important, merge, 0, 16_384);
    let sample = |n, tier| KindConfig { n: Some(n), ..kind(Sampled, Sample, tier, 4_096) };
    let by_key = |config| KindConfig { by: Some(MergeKeyName::Key), ..config };
    let gift = KindConfig {
        by: Some(MergeKeyName::UserKey),
        idle_reset_ms: 60_000,
        ..kind(Ordered, Sum, 1, 4_096)
    };
    let chat = KindConfig { viewer_publish: true, ..kind(Ordered, Append, 3, 4_096) };
    let like = KindConfig { viewer_publish: true, ..by_key(kind(Sampled, Sum, 5, 1_024)) };
    [
        ("red_packet", important(Append)),
        ("coupon", important(Append)),
        ("control", important(Append)),
        ("ban", important(Append)),
        ("product_card", by_key(important(Latest))),
        ("stream_state", by_key(important(Latest))),
        ("super_chat", kind(Ordered, Append, 1, 4_096)),
        ("guard", kind(Ordered, Append, 1, 4_096)),
        ("gift", gift),
        ("chat", chat),
        ("follow", sample(5, 4)),
        ("fansclub", sample(5, 4)),
        ("like", like),
        ("stats", by_key(kind(Sampled, Latest, 5, 4_096))),
        ("enter", sample(3, 6)),
    ]
    .into_iter()
    .map(|(name, config)| (name.to_owned(), config))
    .collect()
}
