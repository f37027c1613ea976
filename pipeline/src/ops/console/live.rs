//! What lives of a page, sent again while somebody looks: server-sent events, each with the part as HTML. A page that nobody looks at costs nothing.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Admin, Caller, Fields, Page};

/// Pages that live at once; each is made anew every two seconds.
const STREAMS_MAX: usize = 32;
/// Eyes follow no faster.
const EVERY: Duration = Duration::from_secs(2);
/// Without a change it is said this often that nothing changed.
const SIGN_OF_LIFE: u32 = 5;
/// Then the browser asks anew, and its session and role are looked at again.
const TURNS: u32 = 300;

/// How many pages live.
#[derive(Clone, Debug)]
pub(super) struct Streams(Arc<Semaphore>);

impl Default for Streams {
    fn default() -> Streams {
        Streams(Arc::new(Semaphore::new(STREAMS_MAX)))
    }
}

struct Stream {
    admin: Arc<Admin>,
    caller: Caller,
    page: Page,
    fields: Fields,
    last: String,
    turns: u32,
    quiet: u32,
    _permit: OwnedSemaphorePermit,
}

impl Stream {
    /// The next thing to say.
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Stream)> {
        loop {
            if self.turns > 0 {
                tokio::time::sleep(EVERY).await;
            }
            self.turns += 1;
            if self.turns > TURNS {
                return None;
            }
            let html = match self.page.view(&self.admin, &self.caller, &self.fields).await {
                Ok(view) => {
                    format!("<p hidden data-headline>{}</p>{}", maud::html! { (view.headline) }.into_string(), view.live.into_string())
                }
                // The page says it when it is asked for; what is shown grows old meanwhile, and says so.
                Err(_) => continue,
            };
            if html != self.last {
                self.quiet = 0;
                // A line's end is the end of a field in this protocol.
                let event = Event::default().event("live").data(html.replace('\r', ""));
                self.last = html;
                return Some((Ok(event), self));
            }
            self.quiet += 1;
            if self.quiet.is_multiple_of(SIGN_OF_LIFE) {
                return Some((Ok(Event::default().event("same").data("-")), self));
            }
        }
    }
}

/// `/live?page=NAME&…`
pub(super) async fn stream(
    State(admin): State<Arc<Admin>>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<Fields>, QueryRejection>,
) -> Response {
    let mut fields = query.map(|Query(fields)| fields).unwrap_or_default();
    let name = fields.remove("page").unwrap_or_default();
    let Some(page) = Page::ALL.iter().find(|page| page.path() == name && page.lives()) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let Ok(permit) = Arc::clone(&admin.console.live.0).try_acquire_owned() else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let stream = Stream { admin, caller, page: *page, fields, last: String::new(), turns: 0, quiet: 0, _permit: permit };
    Sse::new(futures_util::stream::unfold(stream, Stream::next)).into_response()
}
