//! Masks secrets in the content of a bundle.
//!
//! The data of Kubernetes Secrets is never requested. This masks passwords and keys in other places, such as `spec.config`, a ConfigMap or
//! the environment of a pod.

use serde_json::Value;

/// Words in the name of a field whose value is a secret.
const WORDS: [&str; 8] =
    ["password", "passphrase", "secret", "token", "credential", "authorization", "api-key", "private-key"];
/// Fields of Kubernetes whose names contain such a word and whose values are not secret.
const HARMLESS: [&str; 5] =
    ["secretname", "secretnamespace", "secretkeyref", "imagepullsecrets", "serviceaccounttoken"];
/// Replacement for a secret.
const MASK: &str = "(masked)";
/// Annotations that repeat whole objects.
const COPIES: [&str; 1] = ["kubectl.kubernetes.io/last-applied-configuration"];

/// Returns an object with secrets masked, and without managed fields.
pub(super) fn masked(object: Value) -> Value {
    match object {
        Value::Object(fields) => {
            // The name of an environment variable is in another field than its value.
            let named = fields.get("name").and_then(Value::as_str).is_some_and(is_secret);
            let kept =
                fields.into_iter().filter(|(name, _)| name != "managedFields" && !COPIES.contains(&name.as_str()));
            let fields = kept.map(|(name, value)| {
                let hidden = is_secret(&name) || (named && name == "value");
                let value = match value {
                    Value::String(text) if hidden && !text.is_empty() => MASK.into(),
                    Value::Number(_) if hidden => MASK.into(),
                    other => masked(other),
                };
                (name, value)
            });
            Value::Object(fields.collect())
        }
        Value::Array(all) => Value::Array(all.into_iter().map(masked).collect()),
        Value::String(text) => text_masked(&text).into(),
        other => other,
    }
}

/// Masks a text, such as a configuration file: values of secret fields, private keys, passwords in URLs.
fn text_masked(text: &str) -> String {
    let mut lines = Vec::new();
    let mut in_key = false;
    for line in text.split('\n') {
        if line.contains("-----BEGIN") && line.contains("PRIVATE KEY") {
            in_key = true;
            lines.push(MASK.to_owned());
        }
        if !in_key {
            lines.push(line_masked(line));
        }
        in_key &= !line.contains("-----END");
    }
    lines.join("\n")
}

fn line_masked(line: &str) -> String {
    let field = line.find([':', '=']).map(|at| (&line[..at], &line[at..=at], line[at + 1..].trim()));
    if let Some((name, separator, value)) = field {
        let bare = name.trim().trim_start_matches("- ").trim_matches(['"', '\'', '{', ' ']);
        let is_name = !bare.is_empty() && !bare.contains(' ');
        if is_name && !value.is_empty() && !value.starts_with("//") && is_secret(bare) {
            return format!("{name}{separator} {MASK}");
        }
        // On one line: `{user: a, password: b}`.
        let inner = line.to_ascii_lowercase();
        if line.contains('{') && WORDS.iter().any(|word| inner.replace('_', "-").contains(word)) && !harmless(&inner) {
            return format!("{name}{separator} {MASK}");
        }
    }
    without_password(line)
}

fn harmless(lower: &str) -> bool {
    HARMLESS.iter().any(|name| lower.contains(name))
}

/// Returns whether a field of this name has a secret value. The name of a file with a secret is not secret.
fn is_secret(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let plain = lower.replace('_', "-");
    let names_a_file = ["-file", "-path", "-dir"].iter().any(|end| plain.ends_with(end));
    !harmless(&lower)
        && !names_a_file
        && WORDS.iter().any(|word| plain.contains(word) || lower.contains(&word.replace('-', "")))
}

/// Masks user and password in `scheme://user:password@host`.
fn without_password(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let authority = rest.split(['/', '?', '#', ' ', '"', '\'']).next().unwrap_or_default();
    match authority.rsplit_once('@') {
        Some((user, _)) => format!("{scheme}://{MASK}{}", without_password(&rest[user.len()..])),
        None => format!("{scheme}://{}", without_password(rest)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_masked_wherever_they_are_and_the_rest_is_left() {
        let object = json!({
            "metadata": {
                "name": "log",
                "managedFields": [{"x": 1}],
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "hunter2", "note": "kept"},
            },
            "spec": {
                "security": {"authorization": {"mode": "Enabled"}, "tls": {"secrets": {"node": "mine"}}},
                "imagePullSecrets": [{"name": "registry"}],
                "volumes": [{"secret": {"secretName": "log-node-tls"}}],
                "env": [{"name": "DB_PASSWORD", "value": "hunter2"}, {"name": "ZONE", "value": "a"}],
                "config": {"traces": {"endpoint": "https://u:hunter2@collector:4317", "headers": {"Authorization": "hunter2"}}},
                "apiKey": "hunter2", "sessionToken": 12345, "token-file": "/run/token",
            },
            "data": {
                "chronicle.yaml": "a: 1\nkey-password: hunter2\ntls: {key: x, secret: hunter2}\nkey-file: /tls/tls.key\nurl: http://u:hunter2@h/",
                "key.pem": "x\n-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\nafter",
            },
        });
        let text = serde_json::to_string(&masked(object)).unwrap();
        assert!(!text.contains("hunter2") && !text.contains("12345") && !text.contains("managedFields"), "{text}");
        for kept in [
            "\"mode\":\"Enabled\"",
            "\"node\":\"mine\"",
            "\"name\":\"registry\"",
            "\"secretName\":\"log-node-tls\"",
            "\"value\":\"a\"",
            "\"note\":\"kept\"",
            "a: 1\\n",
            "key-file: /tls/tls.key",
            "\\nafter",
            "/run/token",
            "@collector:4317",
        ] {
            assert!(text.contains(kept), "{kept} is not in {text}");
        }
    }
}
