//! Tokens for SASL OAUTHBEARER: from a file that something else keeps fresh, or from a token endpoint by client credentials.

use crate::engine::time::Millis;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rdkafka::client::OAuthToken;
use secrecy::{ExposeSecret, SecretString};
use std::path::PathBuf;
use std::time::Duration;

/// Where tokens come from.
#[derive(Clone, Debug)]
pub enum OauthConfig {
    /// Read anew for every refresh.
    TokenFile(PathBuf),
    Endpoint {
        url: String,
        client_id: String,
        client_secret: SecretString,
        scope: Option<String>,
    },
}

/// Why there is no token. None of these texts holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum OauthError {
    #[error("token file {0}: {1}")]
    File(PathBuf, std::io::Error),
    #[error("token endpoint: {0}")]
    Endpoint(#[from] reqwest::Error),
}

/// A token without a stated end is used for this long.
const LIFETIME: Millis = 300_000;
/// The consumer's thread waits for a token endpoint this long at most.
const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(serde::Deserialize)]
struct Answer {
    access_token: String,
    /// Seconds.
    expires_in: Option<i64>,
}

/// What of a JSON Web Token matters here.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct Claims {
    sub: Option<String>,
    /// Seconds since the Unix epoch.
    exp: Option<f64>,
}

/// See the module.
pub struct Oauth {
    config: OauthConfig,
    clock: fn() -> Millis,
}

impl Oauth {
    pub fn new(config: OauthConfig, clock: fn() -> Millis) -> Oauth {
        Oauth { config, clock }
    }

    /// A fresh token.
    ///
    /// # Errors
    /// Where the file cannot be read, or the endpoint does not answer with a token.
    pub fn token(&self) -> Result<OAuthToken, OauthError> {
        let now = (self.clock)();
        let (token, expires_in) = match &self.config {
            OauthConfig::TokenFile(path) => {
                let text = std::fs::read_to_string(path).map_err(|e| OauthError::File(path.clone(), e))?;
                (text.trim().to_owned(), None)
            }
            OauthConfig::Endpoint { url, client_id, client_secret, scope } => {
                // Another part of the process may have installed it before; either is the same.
                let _ = rustls::crypto::ring::default_provider().install_default();
                let mut form = vec![("grant_type", "client_credentials")];
                form.extend(scope.as_deref().map(|s| ("scope", s)));
                let body: Vec<String> = form.iter().map(|(k, v)| format!("{k}={}", encode(v))).collect();
                let request = reqwest::blocking::Client::builder().timeout(TIMEOUT).build()?.post(url);
                let request = request.basic_auth(encode(client_id), Some(encode(client_secret.expose_secret())));
                let request = request.header("content-type", "application/x-www-form-urlencoded").body(body.join("&"));
                let answer: Answer = request.send()?.error_for_status()?.json()?;
                (answer.access_token, answer.expires_in)
            }
        };
        let claims = claims(&token);
        let lifetime_ms =
            claims.exp.map(|s| (s * 1000.0) as Millis).unwrap_or_else(|| now + expires_in.map_or(LIFETIME, |s| s.saturating_mul(1000)));
        Ok(OAuthToken { token, principal_name: claims.sub.unwrap_or_else(|| "guardraild".to_owned()), lifetime_ms })
    }
}

/// The claims of a JSON Web Token, unverified: only the broker can and must verify them. None for an opaque token.
fn claims(token: &str) -> Claims {
    let payload = token.split('.').nth(1).and_then(|p| BASE64_URL_SAFE_NO_PAD.decode(p.trim_end_matches('=')).ok());
    payload.and_then(|p| serde_json::from_slice(&p).ok()).unwrap_or_default()
}

/// Percent-encoding of everything but unreserved characters.
fn encode(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn jwt(claims: &str) -> String {
        format!("e30.{}.sig", BASE64_URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn a_token_file_is_read_anew() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let oauth = Oauth::new(OauthConfig::TokenFile(file.path().to_owned()), || 1_000);
        std::fs::write(file.path(), jwt(r#"{"sub":"svc","exp":5}"#) + "\n").unwrap();
        let token = oauth.token().unwrap();
        assert_eq!((token.principal_name.as_str(), token.lifetime_ms), ("svc", 5_000));
        assert!(token.token.ends_with(".sig"));
        std::fs::write(file.path(), "opaque").unwrap();
        assert_eq!(oauth.token().unwrap().lifetime_ms, 1_000 + LIFETIME);
        let missing = Oauth::new(OauthConfig::TokenFile("/nonexistent/token".into()), || 0).token();
        assert!(missing.err().unwrap().to_string().contains("/nonexistent/token"));
    }

    #[test]
    fn an_endpoint_is_asked_with_client_credentials() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/token", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            while !request.ends_with("scope=kafka%20read") {
                let mut buf = [0; 1024];
                let n = stream.read(&mut buf).unwrap();
                request.push_str(std::str::from_utf8(&buf[..n]).unwrap());
            }
            let body = r#"{"access_token":"opaque","expires_in":60}"#;
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
            request
        });
        let config =
            OauthConfig::Endpoint { url, client_id: "me".into(), client_secret: "s:cret".into(), scope: Some("kafka read".into()) };
        let token = Oauth::new(config, || 1_000).token().unwrap();
        assert_eq!((token.token.as_str(), token.lifetime_ms), ("opaque", 61_000));
        let request = server.join().unwrap();
        assert!(request.contains("grant_type=client_credentials"), "{request}");
        let basic = base64::prelude::BASE64_STANDARD.encode("me:s%3Acret");
        assert!(request.to_lowercase().contains(&format!("authorization: basic {basic}").to_lowercase()), "{request}");
    }
}
