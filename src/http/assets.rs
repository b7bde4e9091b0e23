//! The dashboard's files, which are part of the program: no build step, nothing from outside.

use super::App;
use super::error::Failure;
use super::packed::Packed;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::collections::BTreeMap;

/// Nothing from outside, nothing inline.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const PAGE: &str = "index.html";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SVG: &str = "image/svg+xml";
const JS: &str = "text/javascript; charset=utf-8";

macro_rules! files {
    ($($kind:ident $name:literal),* $(,)?) => {
        [$(($name, $kind, include_bytes!(concat!("assets/", $name)))),*]
    };
}

/// By name.
pub struct Assets(BTreeMap<&'static str, Packed>);

impl Assets {
    pub fn new() -> Assets {
        let files: [(&str, &'static str, &'static [u8]); 17] = files![
            HTML "index.html",
            CSS "style.css",
            CSS "uPlot.min.css",
            JS "app.js",
            JS "charts.js",
            JS "data.js",
            JS "decision.js",
            JS "deliveries.js",
            JS "dom.js",
            JS "experiment.js",
            JS "fleet.js",
            JS "format.js",
            JS "guardrail.js",
            SVG "icon.svg",
            JS "live.js",
            JS "rules.js",
            JS "uPlot.iife.min.js",
        ];
        Assets(files.into_iter().map(|(name, kind, body)| (name, Packed::file(kind, body))).collect())
    }
}

/// The page itself, which holds no data; a browser without a token is asked for one here.
pub async fn page(State(app): State<App>, headers: HeaderMap) -> Result<Response, Failure> {
    app.api.access.browse(&headers)?;
    let mut response = file(&app, PAGE, &headers);
    let fixed = [(header::CONTENT_SECURITY_POLICY, POLICY), (header::REFERRER_POLICY, "no-referrer")];
    fixed.into_iter().for_each(|(name, value)| drop(response.headers_mut().insert(name, HeaderValue::from_static(value))));
    Ok(response)
}

pub async fn asset(State(app): State<App>, headers: HeaderMap, Path(name): Path<String>) -> Response {
    file(&app, &name, &headers)
}

fn file(app: &App, name: &str, headers: &HeaderMap) -> Response {
    match app.assets.0.get(name) {
        Some(packed) => packed.answer(headers),
        None => Failure::new(StatusCode::NOT_FOUND, "no such file", "").into_response(),
    }
}
