//! Who may do what: bearer tokens with two roles.

use super::error::Failure;
use crate::config::{Http, OpenReads, Role};
use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};
use std::net::IpAddr;
use subtle::ConstantTimeEq;

const BEARER: &str = "Bearer realm=\"guardraild\"";
/// Lets a browser ask for the token, as the password of any user.
const BASIC: &str = "Basic realm=\"guardraild\", charset=\"UTF-8\"";

/// The tokens, as digests, and whether reads need one.
pub struct Access {
    tokens: Vec<(String, Role, [u8; 32])>,
    open: Open,
}

enum Open {
    Never,
    /// To requests that name this machine: another name could be a web page that has rebound its own to 127.0.0.1.
    ToThisMachine,
    Always,
}

impl Access {
    pub fn new(http: &Http) -> Access {
        let digest = |secret: &secrecy::SecretString| Sha256::digest(secret.expose_secret().as_bytes()).into();
        let open = match http.open_reads {
            OpenReads::Always => Open::Always,
            OpenReads::Loopback if http.listen.ip().is_loopback() => Open::ToThisMachine,
            OpenReads::Loopback | OpenReads::Never => Open::Never,
        };
        Access { tokens: http.tokens.iter().map(|t| (t.name.clone(), t.role, digest(&t.token))).collect(), open }
    }

    /// Passes reads: by an open door, a bearer token, or a token as the password of basic authentication (which browsers and
    /// Flagger's URLs can carry).
    pub fn read(&self, headers: &HeaderMap) -> Result<(), Failure> {
        let open = match self.open {
            Open::Always => true,
            Open::ToThisMachine => names_this_machine(headers),
            Open::Never => false,
        };
        let presented = bearer(headers).or_else(|| basic(headers));
        match presented {
            None if open => Ok(()),
            presented => self.find(presented.as_deref()).map(|_| ()),
        }
    }

    /// [`Access::read`] for pages: its challenge makes a browser ask.
    pub fn browse(&self, headers: &HeaderMap) -> Result<(), Failure> {
        self.read(headers).map_err(|failure| Failure { challenge: failure.challenge.map(|_| BASIC), ..failure })
    }

    /// Passes operators, and returns their token's name. Basic authentication will not do: browsers send it for any page that asks.
    pub fn operate(&self, headers: &HeaderMap) -> Result<&str, Failure> {
        match self.find(bearer(headers).as_deref())? {
            (name, Role::Operate) => Ok(name),
            (name, Role::Read) => {
                Err(Failure::new(StatusCode::FORBIDDEN, format!("token `{name}` may only read"), "use one with the role `operate`"))
            }
        }
    }

    /// Whose bearer token a request carries, whatever it may do.
    pub fn holder(&self, headers: &HeaderMap) -> Option<&str> {
        self.find(bearer(headers).as_deref()).ok().map(|(name, _)| name)
    }

    /// Compares with every token, in constant time.
    fn find(&self, presented: Option<&str>) -> Result<(&str, Role), Failure> {
        let denied = |error: &str| Failure {
            challenge: Some(BEARER),
            ..Failure::new(StatusCode::UNAUTHORIZED, error, "send `Authorization: Bearer TOKEN` with a token of http.tokens")
        };
        let digest: [u8; 32] = Sha256::digest(presented.ok_or_else(|| denied("a token is needed"))?.as_bytes()).into();
        let mut found = None;
        for (name, role, token) in &self.tokens {
            if bool::from(token.ct_eq(&digest)) {
                found = Some((name.as_str(), *role));
            }
        }
        found.ok_or_else(|| denied("the token is not known"))
    }
}

fn bearer(headers: &HeaderMap) -> Option<String> {
    scheme(headers, "bearer").map(str::to_owned)
}

fn basic(headers: &HeaderMap) -> Option<String> {
    let decoded = String::from_utf8(STANDARD.decode(scheme(headers, "basic")?).ok()?).ok()?;
    decoded.split_once(':').map(|(_, password)| password.to_owned())
}

fn scheme<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let (scheme, rest) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case(name).then_some(rest.trim())
}

fn names_this_machine(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else {
        return false;
    };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next(),
        None => host.split(':').next(),
    };
    name.is_some_and(|name| name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()))
}
