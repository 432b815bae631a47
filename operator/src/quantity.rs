//! Parses and compares Kubernetes quantities: `1Gi`, `250m`, `1.5G`.

/// Returns the value times 1000; `None` when the text is not a quantity or is out of range.
fn thousandths(text: &str) -> Option<i128> {
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '-' || c == '+')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let factor: i128 = match suffix {
        "m" => 1,
        "" => 1000,
        "k" => 1000 * 1000,
        "M" => 1000 * 1000_i128.pow(2),
        "G" => 1000 * 1000_i128.pow(3),
        "T" => 1000 * 1000_i128.pow(4),
        "P" => 1000 * 1000_i128.pow(5),
        "E" => 1000 * 1000_i128.pow(6),
        "Ki" => 1000 << 10,
        "Mi" => 1000 << 20,
        "Gi" => 1000 << 30,
        "Ti" => 1000 << 40,
        "Pi" => 1000 << 50,
        "Ei" => 1000 << 60,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.len() > 9 || !fraction.chars().all(|c| c.is_ascii_digit()) || whole.len() > 20 {
        return None;
    }
    let whole: i128 = if whole.is_empty() && !fraction.is_empty() { 0 } else { whole.parse().ok()? };
    let digits: i128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let part = digits.checked_mul(factor)? / 10_i128.pow(fraction.len() as u32);
    whole.checked_mul(factor)?.checked_add(part)
}

/// Returns a quantity in whole bytes, rounded up; `None` when it is not a quantity, negative or too large.
pub(crate) fn bytes(text: &str) -> Option<u64> {
    let value = thousandths(text)?;
    u64::try_from((value + 999).div_euclid(1000)).ok().filter(|_| value >= 0)
}

/// Returns whether two texts are the same quantity.
pub(crate) fn same(a: &str, b: &str) -> bool {
    thousandths(a).is_some_and(|a| thousandths(b) == Some(a))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_counted_in_powers_of_ten_and_of_two() {
        assert_eq!(bytes("1Gi"), Some(1 << 30));
        assert_eq!(bytes("1.5Gi"), Some(3 << 29));
        assert_eq!(bytes("1G"), Some(1_000_000_000));
        assert_eq!(bytes("1500m"), Some(2));
        assert_eq!(bytes("-1"), None);
        assert_eq!(bytes("many"), None);
        assert_eq!(bytes(""), None);
        assert_eq!(bytes("99999999999999999999Ei"), None);
    }

    #[test]
    fn quantities_are_the_same_whatever_their_spelling() {
        assert!(same("1024Mi", "1Gi") && same("0.5", "500m") && same("1", "1000m"));
        assert!(!same("1Gi", "1G") && !same("x", "x"));
    }
}
