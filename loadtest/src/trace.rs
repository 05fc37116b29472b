//! Recorded rooms: JSON lines, plain or gzip, sorted by time.

use std::fs;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// One line of a trace.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct TraceEvent {
    /// Milliseconds since the first event.
    pub(crate) t_ms: u64,
    /// Kind.
    pub(crate) kind: String,
    /// Who.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
    /// Content, as it is to be published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) payload: Option<Box<RawValue>>,
    /// Merge key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<String>,
    /// What a sum adds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) amount: Option<i64>,
}

/// A trace with times in microseconds.
#[derive(Debug)]
pub(crate) struct Trace {
    /// (microseconds since the start, event), in order.
    pub(crate) events: Vec<(u64, TraceEvent)>,
    /// Whether stamps were whole seconds and events were spread over theirs.
    pub(crate) spread: bool,
}

/// Reads a trace; only `window` (seconds, end excluded) if given.
pub(crate) fn read(path: &Path, window: Option<(f64, f64)>) -> Result<Trace> {
    let mut file = fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut magic = [0; 2];
    let gzip = file.read(&mut magic)? == 2 && magic == [0x1f, 0x8b];
    let file = fs::File::open(path)?;
    let reader: Box<dyn Read> =
        if gzip { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let mut events = Vec::new();
    for (number, line) in BufReader::new(reader).lines().enumerate() {
        let line = line.with_context(|| format!("reading {}", path.display()))?;
        let event: TraceEvent = serde_json::from_str(&line)
            .with_context(|| format!("{} line {}", path.display(), number + 1))?;
        if events.last().is_some_and(|last: &TraceEvent| last.t_ms > event.t_ms) {
            bail!("{} line {}: not sorted by t_ms", path.display(), number + 1);
        }
        events.push(event);
    }
    let (times, spread) = spread(&events.iter().map(|event| event.t_ms).collect::<Vec<_>>());
    let (from, to) = window.unwrap_or((0.0, f64::INFINITY));
    let offset = (from * 1e6) as u64;
    let inside = |us: u64| us >= offset && (us as f64) < to * 1e6;
    let events: Vec<(u64, TraceEvent)> = times
        .into_iter()
        .zip(events)
        .filter(|(us, _)| inside(*us))
        .map(|(us, event)| (us - offset, event))
        .collect();
    if events.is_empty() {
        bail!("{}: no events in that window", path.display());
    }
    Ok(Trace { events, spread })
}

/// Writes a trace, as gzip if the name ends so.
pub(crate) fn write(path: &Path, events: &[TraceEvent]) -> Result<()> {
    let file = fs::File::create(path).with_context(|| format!("creating {}", path.display()))?;
    let file = std::io::BufWriter::new(file);
    if path.extension().is_some_and(|extension| extension == "gz") {
        let mut out = GzEncoder::new(file, Compression::new(6));
        lines(&mut out, events)?;
        out.finish()?.flush()?;
    } else {
        let mut out = file;
        lines(&mut out, events)?;
        out.flush()?;
    }
    Ok(())
}

fn lines(out: &mut impl Write, events: &[TraceEvent]) -> Result<()> {
    for event in events {
        serde_json::to_writer(&mut *out, event)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

/// Times in microseconds. Where all stamps are whole seconds, the events of a
/// second are spread evenly over it, in their order.
fn spread(stamps_ms: &[u64]) -> (Vec<u64>, bool) {
    let whole = stamps_ms.len() > 1 && stamps_ms.iter().all(|ms| ms.is_multiple_of(1_000));
    if !whole {
        return (stamps_ms.iter().map(|ms| ms * 1_000).collect(), false);
    }
    let mut out = Vec::with_capacity(stamps_ms.len());
    for second in stamps_ms.chunk_by(|a, b| a == b) {
        let count = second.len() as u64;
        out.extend((0..count).map(|index| second[0] * 1_000 + index * 1_000_000 / count));
    }
    (out, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_seconds_are_spread_and_order_is_kept() {
        let (times, was_spread) = spread(&[0, 0, 0, 0, 1_000, 3_000, 3_000]);
        assert!(was_spread);
        assert_eq!(times, [0, 250_000, 500_000, 750_000, 1_000_000, 3_000_000, 3_500_000]);
        assert!(times.is_sorted());
    }

    #[test]
    fn milliseconds_are_kept() {
        assert_eq!(spread(&[0, 14, 1_000]), (vec![0, 14_000, 1_000_000], false));
    }

    #[test]
    fn what_is_written_is_read_back_plain_or_compressed() {
        let line =
            r#"{"t_ms":5,"kind":"gift","user":"u1","payload":{"a": 1.50},"key":"k","amount":3}"#;
        let bare = r#"{"t_ms":7,"kind":"control"}"#;
        let events: Vec<TraceEvent> =
            [line, bare].iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let dir = std::env::temp_dir();
        for name in ["jsonl", "jsonl.gz"] {
            let path = dir.join(format!("loadtest-trace-{}.{name}", std::process::id()));
            write(&path, &events).unwrap();
            let trace = read(&path, None).unwrap();
            let payload = trace.events[0].1.payload.as_ref().unwrap().get();
            assert_eq!(payload, r#"{"a": 1.50}"#);
            assert_eq!((trace.events[1].0, trace.spread), (7_000, false));
            assert_eq!(read(&path, Some((0.006, 1.0))).unwrap().events.len(), 1);
            assert!(read(&path, Some((5.0, 6.0))).is_err());
            fs::remove_file(path).unwrap();
        }
    }
}
