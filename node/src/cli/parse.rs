//! Parsers of argument values: durations, sizes, escapes, positions, headers.

use std::time::Duration;

use chronicle_client::Position;

use super::time;

/// `500ms`, `30s`, `5m`, `12h`, `7d`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let factor = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err("must be a number with a unit: ms, s, m, h or d".into()),
    };
    let number: u64 = digits.parse().map_err(|_| "must begin with a whole number".to_owned())?;
    let millis = number.checked_mul(factor).filter(|ms| i64::try_from(*ms).is_ok());
    millis.map(Duration::from_millis).ok_or_else(|| "is too long".into())
}

/// A retention time in milliseconds: a duration, or `-1` or `forever` for no limit.
pub(super) fn retention_ms(text: &str) -> Result<i64, String> {
    if matches!(text, "-1" | "forever") {
        return Ok(-1);
    }
    let millis = duration(text).map_err(|rule| format!("{rule}, or forever"))?.as_millis();
    i64::try_from(millis).map_err(|_| "is too long".into())
}

/// A number of bytes, optionally with a binary unit: `1048576`, `1MiB`.
pub(super) fn bytes(text: &str) -> Result<i64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let factor: i64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err("must be a number of bytes, such as 1048576 or 1MiB".into()),
    };
    let number: i64 = digits.parse().map_err(|_| "must begin with a whole number".to_owned())?;
    number.checked_mul(factor).ok_or_else(|| "is too large".into())
}

/// As [`bytes()`], or `-1` or `unlimited` for no limit.
pub(super) fn retention_bytes(text: &str) -> Result<i64, String> {
    if matches!(text, "-1" | "unlimited") {
        Ok(-1)
    } else {
        bytes(text).map_err(|rule| format!("{rule}, or unlimited"))
    }
}

/// As [`bytes()`], within an `i32`.
pub(super) fn bytes_i32(text: &str) -> Result<i32, String> {
    i32::try_from(bytes(text)?).map_err(|_| "is too large".into())
}

/// As [`bytes()`], within a `usize` and at least 1.
pub(super) fn size(text: &str) -> Result<usize, String> {
    usize::try_from(bytes(text)?).ok().filter(|size| *size > 0).ok_or_else(|| "must be at least 1".into())
}

/// Parses a start position: `earliest`, `latest`, an offset, `@` and milliseconds, or an RFC 3339 time.
pub(super) fn position(text: &str) -> Result<Position, String> {
    const RULE: &str = "must be earliest, latest, an offset, @MILLISECONDS or a time such as 2026-11-21T10:00:00Z";
    match text {
        "earliest" => return Ok(Position::Earliest),
        "latest" => return Ok(Position::Latest),
        _ => {}
    }
    if let Some(millis) = text.strip_prefix('@') {
        return millis.parse().map(Position::Timestamp).map_err(|_| RULE.into());
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().map(Position::Offset).map_err(|_| RULE.into());
    }
    time::parse_rfc3339(text).map(Position::Timestamp).ok_or_else(|| RULE.into())
}

/// Bytes with the escapes `\n \r \t \0 \\` and `\xNN`.
pub(super) fn escaped(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        let plain = match rest.next() {
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'0') => 0,
            Some(b'\\') => b'\\',
            Some(b'x') => {
                let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16));
                let (high, low) = digit().zip(digit()).ok_or("\\x takes two hexadecimal digits")?;
                u8::try_from(high * 16 + low).map_err(|_| "\\x takes two hexadecimal digits")?
            }
            _ => return Err("the escapes are \\n \\r \\t \\0 \\\\ and \\xNN".into()),
        };
        bytes.push(plain);
    }
    Ok(bytes)
}

/// As [`escaped`], at least one byte.
pub(super) fn separator(text: &str) -> Result<Bytes, String> {
    escaped(text).and_then(|bytes| if bytes.is_empty() { Err("must not be empty".into()) } else { Ok(Bytes(bytes)) })
}

/// As [`escaped`], as an argument value.
pub(super) fn delimiter(text: &str) -> Result<Bytes, String> {
    escaped(text).map(Bytes)
}

/// Bytes given as an argument; a separate type, because clap takes a `Vec` for a repeated argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bytes(pub(super) Vec<u8>);

/// A header as `NAME=VALUE`.
pub(super) fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("must be NAME=VALUE".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_names_offsets_and_times() {
        assert_eq!(position("earliest"), Ok(Position::Earliest));
        assert_eq!(position("latest"), Ok(Position::Latest));
        assert_eq!(position("42"), Ok(Position::Offset(42)));
        assert_eq!(position("@1000"), Ok(Position::Timestamp(1000)));
        assert_eq!(position("1970-01-01T00:00:01Z"), Ok(Position::Timestamp(1000)));
        for wrong in ["", "-1", "@", "@x", "99999999999999999999", "1970-13-01T00:00:01Z"] {
            assert!(position(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_and_sizes_need_known_units_and_do_not_overflow() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        for wrong in ["5", "s", "-5s", "5w", "99999999999999d", "1.5s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        assert_eq!(bytes("3MiB"), Ok(3 << 20));
        assert_eq!(retention_bytes("unlimited"), Ok(-1));
        assert_eq!(retention_ms("forever"), Ok(-1));
        assert_eq!(retention_ms("7d"), Ok(604_800_000));
        for wrong in ["3MB", "-3", "9999999999TiB", ""] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
        assert!(size("0").is_err());
        assert!(bytes_i32("2GiB").is_err());
    }

    #[test]
    fn escapes_become_bytes() {
        assert_eq!(escaped(r"a\t\n\0\\\xfF"), Ok(vec![b'a', b'\t', b'\n', 0, b'\\', 0xff]));
        for wrong in [r"\", r"\q", r"\x1", r"\xzz"] {
            assert!(escaped(wrong).is_err(), "{wrong}");
        }
        assert!(separator("").is_err());
    }

    #[test]
    fn headers_split_at_the_first_equals_sign() {
        assert_eq!(header("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(header("a="), Ok(("a".into(), String::new())));
        assert!(header("=b").is_err());
    }
}
