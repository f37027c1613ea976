//! The files of the console: one style, one script, one picture. They come with the program.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// A file.
pub(super) struct Asset {
    pub(super) path: &'static str,
    kind: &'static str,
    pub(super) body: &'static str,
}

/// All of them.
pub(super) const ALL: &[Asset] = &[
    Asset { path: "/assets/console.css", kind: "text/css; charset=utf-8", body: include_str!("console.css") },
    Asset { path: "/assets/console.js", kind: "text/javascript; charset=utf-8", body: include_str!("console.js") },
    Asset { path: "/assets/icon.svg", kind: "image/svg+xml", body: include_str!("icon.svg") },
];

impl Asset {
    /// The file, or that it has not changed.
    pub(super) fn serve(&self, headers: &HeaderMap) -> Response {
        let tag = format!("\"{:08x}-{}\"", crc32fast::hash(self.body.as_bytes()), env!("CARGO_PKG_VERSION"));
        let known = headers.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes());
        let Ok(tag) = HeaderValue::from_str(&tag) else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
        // Asked again each time: another program may have other files under the same names.
        let about = [(header::ETAG, tag), (header::CACHE_CONTROL, HeaderValue::from_static("no-cache"))];
        match known {
            true => (StatusCode::NOT_MODIFIED, about).into_response(),
            false => (about, [(header::CONTENT_TYPE, HeaderValue::from_static(self.kind))], self.body).into_response(),
        }
    }
}
