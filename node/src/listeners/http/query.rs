//! Query parameters: only known names, each at most once. Errors contain the name of the parameter.

use std::str::FromStr;

use http::Uri;

use crate::model::ApiError;

/// The parameters of one request.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// # Errors
    /// INVALID_REQUEST for a name that is not `known`, a name given twice, and bytes that are not UTF-8.
    pub(super) fn parse(uri: &Uri, known: &[&str]) -> Result<Self, ApiError> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decode(name)?, decode(value)?);
            if !known.contains(&name.as_str()) {
                let rule = match known {
                    [] => "must be absent: this endpoint has no query parameters".to_owned(),
                    _ => format!("must be one of {}", known.join(", ")),
                };
                return Err(ApiError::invalid("query", &name, &rule));
            }
            if pairs.iter().any(|(other, _)| *other == name) {
                return Err(ApiError::invalid(&name, value, "must be given once"));
            }
            pairs.push((name, value));
        }
        Ok(Self(pairs))
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// Returns a whole number that is at least `least`; `None` when the parameter is absent.
    ///
    /// # Errors
    /// INVALID_REQUEST when the value is not such a number, or does not fit `T`.
    pub(super) fn number<T: FromStr + PartialOrd + std::fmt::Display>(
        &self,
        name: &str,
        least: T,
    ) -> Result<Option<T>, ApiError> {
        let Some(text) = self.text(name) else { return Ok(None) };
        match text.parse() {
            Ok(number) if number >= least => Ok(Some(number)),
            _ => Err(ApiError::invalid(name, text, &format!("must be a whole number, at least {least}"))),
        }
    }
}

/// Decodes `application/x-www-form-urlencoded` text.
fn decode(text: &str) -> Result<String, ApiError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => match after {
                [high, low, after @ ..] if let (Some(high), Some(low)) = (hex(*high), hex(*low)) => {
                    rest = after;
                    high << 4 | low
                }
                _ => return Err(ApiError::invalid("query", text, "`%` must be followed by two hexadecimal digits")),
            },
            byte => byte,
        });
    }
    String::from_utf8(bytes).map_err(|_| ApiError::invalid("query", text, "must be UTF-8"))
}

fn hex(digit: u8) -> Option<u8> {
    (digit as char).to_digit(16).map(|digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(query: &str) -> Result<Query, ApiError> {
        Query::parse(&format!("/?{query}").parse().unwrap(), &["offset", "name"])
    }

    #[test]
    fn parameters_are_decoded() {
        let query = parse("offset=7&name=a%2Fb+c").unwrap();
        assert_eq!(query.number("offset", 0i64).unwrap(), Some(7));
        assert_eq!(query.text("name"), Some("a/b c"));
        assert_eq!(parse("").unwrap().number("offset", 0i64).unwrap(), None);
    }

    #[test]
    fn errors_name_parameter_value_and_rule() {
        let message = |query: &str| match parse(query) {
            Err(error) => error.message,
            Ok(query) => query.number("offset", 0i64).unwrap_err().message,
        };
        assert_eq!(message("ofset=1"), "query: ofset: must be one of offset, name");
        assert_eq!(message("offset=1&offset=2"), "offset: 2: must be given once");
        assert_eq!(message("offset=-1"), "offset: -1: must be a whole number, at least 0");
        assert_eq!(
            message("offset=9223372036854775808"),
            "offset: 9223372036854775808: must be a whole number, at least 0"
        );
        assert_eq!(message("name=%f"), "query: %f: `%` must be followed by two hexadecimal digits");
        assert_eq!(message("name=%ff"), "query: %ff: must be UTF-8");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn arbitrary_queries_never_panic(query in "[a-z%&=+0-9\\-]{0,40}") {
            if let Ok(query) = parse(&query) {
                let _ = query.number("offset", 0i64);
            }
        }
    }
}
