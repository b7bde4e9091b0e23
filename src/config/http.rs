//! The `http` section: where the daemon listens, and who may ask it for what.

use super::reader::{self, Fault, Section, code};
use secrecy::{ExposeSecret, SecretString};
use std::net::SocketAddr;
use std::path::PathBuf;

#[derive(Clone, Debug)]
pub struct Http {
    pub listen: SocketAddr,
    /// Without a slash at its end.
    pub base_url: String,
    /// `None`: plain HTTP.
    pub tls: Option<Tls>,
    /// Open at once: in all, and from one address.
    pub connections: usize,
    pub connections_per_address: usize,
    pub tokens: Vec<Token>,
    pub open_reads: OpenReads,
}

/// PEM files, which are read again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The server's own first, then those in between.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Clients must show a certificate of one of these authorities.
    pub client_ca: Option<PathBuf>,
}

/// Who may call the API. Several of one name stand for one holder whose token rotates.
#[derive(Clone, Debug)]
pub struct Token {
    pub name: String,
    pub role: Role,
    pub token: SecretString,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Read,
    /// Includes [`Role::Read`].
    Operate,
}

/// When reads need no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenReads {
    /// Where the daemon listens on loopback.
    Loopback,
    Never,
    Always,
}

pub fn read(mut s: Section<'_>) -> Http {
    let listen = s.opt("listen", |item| {
        let text = reader::text(item)?;
        let fault = || Fault::new(code::WRONG_TYPE, "expected an address such as 127.0.0.1:8080, 0.0.0.0:8080 or [::1]:8080");
        text.replace("localhost:", "127.0.0.1:").parse::<SocketAddr>().map_err(|_| fault())
    });
    if listen.is_none() && !s.has_taken("listen") {
        s.missing("listen");
    }
    let listen = listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8080)));
    let tls = if s.has("tls") { Some(tls(s.section("tls"))) } else { s.opt("tls", |_| Ok(None)).flatten() };
    let scheme = if tls.is_some() { "https" } else { "http" };
    let base_url = s.opt("base_url", super::url).unwrap_or_else(|| format!("{scheme}://{listen}"));
    let connections = s.need("connections", reader::whole(8..=100_000));
    let connections_per_address = s.need("connections_per_address", reader::whole(1..=100_000));
    let tokens = tokens(&mut s);
    let words = &[("loopback", OpenReads::Loopback), ("never", OpenReads::Never), ("always", OpenReads::Always)];
    let open_reads = s.opt("open_reads", reader::choice(words)).unwrap_or(OpenReads::Loopback);
    s.finish();
    let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    Http {
        listen,
        base_url: base_url.trim_end_matches('/').to_owned(),
        tls,
        connections: count(connections),
        connections_per_address: count(connections_per_address),
        tokens,
        open_reads,
    }
}

fn tokens(http: &mut Section<'_>) -> Vec<Token> {
    let mut tokens: Vec<Token> = Vec::new();
    for mut s in http.list("tokens") {
        let name: String = s.need("name", reader::text);
        let role = s.opt("role", reader::choice(&[("read", Role::Read), ("operate", Role::Operate)]));
        if role.is_none() && !s.has_taken("role") {
            s.missing("role");
        }
        let token: SecretString = s.need("token", reader::secret);
        if tokens.iter().any(|other| other.name == name && Some(other.role) != role) {
            s.fault("name", Fault::new(code::INCONSISTENT, format!("`{name}` has another role already; the name tells who did what")));
        } else if tokens.iter().any(|other| other.token.expose_secret() == token.expose_secret() && !token.expose_secret().is_empty()) {
            s.fault("token", Fault::new(code::INCONSISTENT, "this token is there already"));
        } else if (1..16).contains(&token.expose_secret().len()) {
            s.fault(
                "token",
                Fault::new(code::UNUSABLE_SECRET, "a token has at least 16 characters").help("`openssl rand -hex 32` makes one"),
            );
        }
        s.finish();
        tokens.push(Token { name, role: role.unwrap_or(Role::Read), token });
    }
    tokens
}

fn tls(mut s: Section<'_>) -> Tls {
    let tls = Tls {
        certificate: s.need("certificate", reader::path),
        key: s.need("key", reader::path),
        client_ca: s.opt("client_ca", reader::path),
    };
    s.finish();
    tls
}
