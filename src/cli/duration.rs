//! `90s`, `1h`: durations as people write them.

use std::time::Duration;

/// Longest duration of a token, in days.
const MAX_DAYS: u64 = 3_650;

/// Reads a whole number with `s`, `m`, `h` or `d`; without a unit it is seconds.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(format!("{unit:?} is no unit; s, m, h and d are")),
    };
    let number: u64 =
        number.parse().map_err(|_| "wants a whole number first, as in 90s".to_owned())?;
    match number.checked_mul(factor) {
        Some(seconds) if (1..=MAX_DAYS * 86_400).contains(&seconds) => {
            Ok(Duration::from_secs(seconds))
        }
        _ => Err(format!("allowed: 1s to {MAX_DAYS}d")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_understood_and_nonsense_is_refused() {
        assert_eq!(parse("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse("1h"), Ok(Duration::from_secs(3_600)));
        assert_eq!(parse("1d"), Ok(Duration::from_secs(86_400)));
        for bad in
            ["", "h", "0s", "-1s", "1.5h", "1y", "99999999999999999999s", "18446744073709551615d"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
