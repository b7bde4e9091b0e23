//! Errors as JSON: `{"error": …, "hint": …}`.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// An answer that is no success.
#[derive(Debug)]
pub struct Failure {
    pub status: StatusCode,
    pub error: String,
    /// What to do about it; may be empty.
    pub hint: String,
    /// How to authenticate, for 401.
    pub challenge: Option<&'static str>,
}

impl Failure {
    pub fn new(status: StatusCode, error: impl Into<String>, hint: impl Into<String>) -> Failure {
        Failure { status, error: error.into(), hint: hint.into(), challenge: None }
    }

    pub fn bad_request(error: impl Into<String>, hint: impl Into<String>) -> Failure {
        Failure::new(StatusCode::BAD_REQUEST, error, hint)
    }

    pub fn no_experiment(name: &str) -> Failure {
        Failure::new(StatusCode::NOT_FOUND, format!("no experiment `{name}` in the loaded rules"), "GET /api/v1/experiments lists them")
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = match self.hint.as_str() {
            "" => serde_json::json!({"error": self.error}),
            hint => serde_json::json!({"error": self.error, "hint": hint}),
        };
        let mut response = (self.status, Json(body)).into_response();
        if let Some(challenge) = self.challenge {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        response
    }
}
