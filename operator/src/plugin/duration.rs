//! Parses durations in flags, such as `90s`.

use std::time::Duration;

/// Parses `30s`, `5m`, `2h`, `1d`, or a number of seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let rule = || format!("{text:?}: must be a number with s, m, h or d, such as 90s");
    let (number, seconds) = match text.trim().split_at_checked(text.trim().len().saturating_sub(1)) {
        Some((number, "s")) => (number, 1),
        Some((number, "m")) => (number, 60),
        Some((number, "h")) => (number, 3600),
        Some((number, "d")) => (number, 86_400),
        _ => (text.trim(), 1),
    };
    let number: u64 = number.parse().map_err(|_| rule())?;
    number.checked_mul(seconds).filter(|seconds| *seconds <= 3_650 * 86_400).map(Duration::from_secs).ok_or_else(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_given_with_their_unit() {
        assert_eq!(
            ["45", "45s", "2m", "3h", "1d"].map(|text| duration(text).unwrap().as_secs()),
            [45, 45, 120, 10_800, 86_400]
        );
        for bad in ["", "s", "-5s", "5w", "ü", "99999999999999999999s", "99999999d"] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }
}
