//! Parses the few fields of an X.509 certificate that a rotation needs: serial number and start of validity.
//!
//! Invariant: malformed input returns `None` and never panics.

/// Returns the start of validity of the first certificate in a PEM text, `YYYYMMDDhhmmssZ`: such texts sort by time.
pub(super) fn not_before(pem: &str) -> Option<String> {
    let der = der(pem)?;
    let (_, rest) = element(numbered(&der)?, 0x02)?;
    let (_algorithm, rest) = element(rest, 0x30)?;
    let (_issuer, rest) = element(rest, 0x30)?;
    let (validity, _) = element(rest, 0x30)?;
    let time = |tag: u8| Some(std::str::from_utf8(element(validity, tag)?.0).ok()?.to_owned());
    // Two digits of the year until 2049, four from then on.
    match time(0x17) {
        Some(short) if short.as_str() < "50" => Some(format!("20{short}")),
        Some(short) => Some(format!("19{short}")),
        None => time(0x18),
    }
}

/// Returns the serial number of the first certificate in a PEM text, in lower-case hexadecimal.
pub(super) fn serial(pem: &str) -> Option<String> {
    let der = der(pem)?;
    let (number, _) = element(numbered(&der)?, 0x02)?;
    Some(number.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Returns the DER bytes of the first certificate in a PEM text.
fn der(pem: &str) -> Option<Vec<u8>> {
    let body = pem.split("-----BEGIN CERTIFICATE-----").nth(1)?.split("-----END CERTIFICATE-----").next()?;
    let compact: String = body.split_whitespace().collect();
    base64::Engine::decode(&base64::engine::general_purpose::STANDARD, compact).ok()
}

/// Returns the signed part of a certificate (RFC 5280, 4.1) from its serial number on.
fn numbered(der: &[u8]) -> Option<&[u8]> {
    let (certificate, _) = element(der, 0x30)?;
    let (to_be_signed, _) = element(certificate, 0x30)?;
    // The version is absent in certificates of version 1.
    Some(element(to_be_signed, 0xa0).map_or(to_be_signed, |(_, rest)| rest))
}

/// Returns the content of the DER element with this tag at the start, and the bytes after it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    if found != tag {
        return None;
    }
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| (length << 8) | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

/// Returns whether two serial numbers are equal, regardless of leading zeros and separators.
pub(super) fn same_serial(a: &str, b: &str) -> bool {
    let normal = |text: &str| {
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect::<String>().to_lowercase();
        digits.trim_start_matches('0').to_owned()
    };
    normal(a) == normal(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untrusted_bytes_are_parsed_or_rejected() {
        // SEQUENCE { SEQUENCE { [0] { INTEGER 2 }, INTEGER 00ab } }
        let der = [0x30, 0x0b, 0x30, 0x09, 0xa0, 0x03, 0x02, 0x01, 0x02, 0x02, 0x02, 0x00, 0xab];
        let pem = |der: &[u8]| {
            let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
            format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
        };
        assert_eq!(serial(&pem(&der)).as_deref(), Some("00ab"));
        assert!(same_serial("00ab", "AB") && same_serial("0:ab", "ab") && !same_serial("ab", "ac"));
        for cut in 0..der.len() {
            assert_eq!(serial(&pem(&der[..cut])), None, "cut at {cut}");
        }
        assert_eq!(serial("no certificate"), None);
    }

    #[test]
    fn start_times_sort_by_time() {
        let parsed = |tag: u8, time: &str| {
            let mut validity = vec![0x30, time.len() as u8 + 2, tag, time.len() as u8];
            validity.extend(time.as_bytes());
            // INTEGER 1, two empty SEQUENCEs, the validity.
            let mut signed = vec![0x02, 0x01, 0x01, 0x30, 0x00, 0x30, 0x00];
            signed.extend(validity);
            let wrap = |content: Vec<u8>| [vec![0x30, content.len() as u8], content].concat();
            let der = wrap(wrap(signed));
            let pem = |der: &[u8]| {
                let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
                format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
            };
            for cut in 0..der.len() {
                assert_eq!(not_before(&pem(&der[..cut])), None, "cut at {cut}");
            }
            not_before(&pem(&der)).unwrap()
        };
        let times = [parsed(0x17, "991231235959Z"), parsed(0x17, "261122000000Z"), parsed(0x18, "20500101000000Z")];
        assert_eq!(times, ["19991231235959Z", "20261122000000Z", "20500101000000Z"]);
        assert!(times.is_sorted());
    }
}
