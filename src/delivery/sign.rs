//! Standard Webhooks 1.0.0 signatures: HMAC-SHA256 over `id.timestamp.body`, one for each secret.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// A signing key: HMAC-SHA256, already keyed.
#[derive(Clone)]
pub(super) struct Key(Hmac<Sha256>);

impl Key {
    /// Reads `whsec_` and base64, or takes the bytes as they are; 24 to 64 of them.
    pub(super) fn parse(secret: &str) -> Result<Key, &'static str> {
        let bytes = match secret.strip_prefix("whsec_") {
            Some(encoded) => STANDARD.decode(encoded).map_err(|_| "what follows `whsec_` is not base64")?,
            None => secret.as_bytes().to_vec(),
        };
        if !(24..=64).contains(&bytes.len()) {
            return Err("a secret has 24 to 64 bytes");
        }
        Hmac::new_from_slice(&bytes).map(Key).map_err(|_| "not usable as a key")
    }

    fn sign(&self, id: &str, timestamp: i64, body: &str) -> String {
        let mut mac = self.0.clone();
        mac.update(format!("{id}.{timestamp}.").as_bytes());
        mac.update(body.as_bytes());
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }
}

/// The `webhook-signature` header. `timestamp` is in seconds since the epoch, as in `webhook-timestamp`.
pub(super) fn signature(keys: &[Key], id: &str, timestamp: i64, body: &str) -> String {
    keys.iter().map(|key| key.sign(id, timestamp, body)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_example_comes_out() {
        let key = Key::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let body = r#"{"test": 2432232314}"#;
        assert_eq!(key.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body), "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn secrets_that_are_too_short_or_malformed_are_refused() {
        assert!(Key::parse("whsec_c2hvcnQ=").is_err());
        assert!(Key::parse("whsec_not base64 at all, is it now").is_err());
        assert!(Key::parse(&"x".repeat(23)).is_err());
        assert!(Key::parse(&"x".repeat(24)).is_ok());
        assert!(Key::parse(&"x".repeat(65)).is_err());
    }
}
