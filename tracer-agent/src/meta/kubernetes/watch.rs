//! One watch: a list, then every change, for ever.
//!
//! In: a path of the API. Out: calls of a [`Sink`]. Follows the API's rules: changes are asked for from
//! the version that was seen last; bookmarks move it on; a version that the server has forgotten
//! (410 Gone) means a new list, during which what was known stays. Whatever fails is tried again, with
//! growing pauses. Objects that cannot be read are counted and passed over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body_util::BodyExt;

use super::access::{Access, Api};
use super::model::{Event, EventKind, List, Object, Status};
use super::splitter::Splitter;
use super::store::Store;
use crate::causes::chain;

/// The server ends a watch after about this; then it goes on from where it was.
const WATCH_SECONDS: u64 = 290;
/// What it may take longer.
const WATCH_SLACK: Duration = Duration::from_secs(30);
/// A server that says nothing for so long while it should answer is asked again.
const ANSWER: Duration = Duration::from_secs(30);
/// Of an error only the beginning is of interest.
const ERROR_MAX: usize = 4096;
/// Items of one page; those of a node come in one.
const PAGE: u32 = 500;
const GONE: u16 = 410;

/// Takes what a watch tells.
pub trait Sink<T>: Send {
    /// All objects follow.
    fn list_begins(&mut self);
    /// One of them.
    fn listed(&mut self, object: T);
    /// That was all: what was not among them is gone.
    fn list_ends(&mut self);
    /// An object came or changed.
    fn put(&mut self, object: T);
    /// An object went.
    fn remove(&mut self, object: T);
}

/// Pauses between attempts.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// The first one.
    pub first: Duration,
    /// The longest one.
    pub most: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff {
            first: Duration::from_millis(500),
            most: Duration::from_secs(15),
        }
    }
}

/// Why a round ended.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    /// The version that was asked for is forgotten.
    Gone,
    /// Anything else, for the log.
    Other(String),
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Failure::Other(why)
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct Watch<S> {
    /// How to reach the API.
    pub access: Access,
    /// `/api/v1/pods`.
    pub path: &'static str,
    /// Which objects, as in a query; may be empty.
    pub selector: String,
    /// What takes them.
    pub sink: S,
    /// Where it is counted.
    pub store: Arc<Store>,
    /// Pauses between attempts.
    pub backoff: Backoff,
    /// The last attempt failed, and the log says so.
    pub failing: bool,
}

/// Counts a watch as standing until it is dropped.
struct Standing(Arc<Store>);

impl Standing {
    fn new(store: &Arc<Store>) -> Self {
        store.counters().watching.fetch_add(1, Ordering::Relaxed);
        Standing(Arc::clone(store))
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.0.counters().watching.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<S> Watch<S> {
    /// Follows the API until it is dropped.
    pub async fn run<T: Object>(mut self)
    where
        S: Sink<T>,
    {
        let mut version: Option<Box<str>> = None;
        // Any version will do at first: servers have one in memory. Not after they said Gone, or they
        // could say it again.
        let mut any_version = true;
        let mut pause = self.backoff.first;
        self.store.counters().wanted.fetch_add(1, Ordering::Relaxed);
        loop {
            let before = version.clone();
            let Err(failure) = self.round(&mut version, any_version).await;
            add(&self.store.counters().failures);
            if version != before {
                pause = self.backoff.first;
            }
            match failure {
                Failure::Gone => {
                    tracing::debug!(
                        path = self.path,
                        "the api server forgot the version, listing again"
                    );
                    version = None;
                    any_version = false;
                }
                Failure::Other(why) if self.failing => {
                    tracing::debug!(path = self.path, %why, "the Kubernetes api cannot be asked");
                }
                Failure::Other(why) => {
                    self.failing = true;
                    tracing::warn!(
                        path = self.path, %why,
                        "the Kubernetes api cannot be asked; spans go on with what is known of pods, it is tried again"
                    );
                }
            }
            // Many agents that lost the same server do not come back at the same moment.
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(self.backoff.most);
        }
    }

    /// One client's life: ends with a failure only.
    async fn round<T: Object>(
        &mut self,
        version: &mut Option<Box<str>>,
        any_version: bool,
    ) -> Result<std::convert::Infallible, Failure>
    where
        S: Sink<T>,
    {
        let api = self.access.open().map_err(|error| chain(&error))?;
        let mut from = match version.clone() {
            Some(version) => version,
            None => self.list(&api, any_version).await?,
        };
        *version = Some(from.clone());
        loop {
            let result = self.watch(&api, &mut from).await;
            *version = Some(from.clone());
            result?;
        }
    }

    /// All objects there are. Returns the version from where to watch.
    async fn list<T: Object>(&mut self, api: &Api, any_version: bool) -> Result<Box<str>, Failure>
    where
        S: Sink<T>,
    {
        self.sink.list_begins();
        let mut more = String::new();
        loop {
            let mut path = format!("{}?limit={PAGE}{}", self.path, self.selector);
            if !more.is_empty() {
                path.push_str("&continue=");
                path.push_str(&encoded(&more));
            } else if any_version {
                path.push_str("&resourceVersion=0");
            }
            let mut body = answer(api, &path).await?;
            let mut splitter = Splitter::list();
            while let Some(piece) = next(&mut body, ANSWER).await? {
                let (sink, malformed) = (&mut self.sink, &self.store.counters().malformed);
                let mut each = |object: &[u8]| match serde_json::from_slice::<T>(object) {
                    Ok(object) => sink.listed(object),
                    Err(_) => add(malformed),
                };
                let split = splitter.push(&piece, &mut each);
                split.map_err(|error| error.to_string())?;
            }
            let list: List = serde_json::from_slice(splitter.rest())
                .map_err(|_| "the list was cut short".to_owned())?;
            more = list.metadata.more.into();
            if more.is_empty() {
                self.sink.list_ends();
                add(&self.store.counters().lists);
                return Ok(list.metadata.resource_version);
            }
        }
    }

    /// Changes since `from`, which moves on with them, until the server ends the watch.
    async fn watch<T: Object>(&mut self, api: &Api, from: &mut Box<str>) -> Result<(), Failure>
    where
        S: Sink<T>,
    {
        // Not all at the same moment.
        let seconds = WATCH_SECONDS - fastrand::u64(0..60);
        let path = format!(
            "{}?watch=1&allowWatchBookmarks=true&timeoutSeconds={seconds}&resourceVersion={}{}",
            self.path,
            encoded(from),
            self.selector
        );
        let mut body = answer(api, &path).await?;
        let _standing = Standing::new(&self.store);
        if std::mem::take(&mut self.failing) {
            tracing::info!(path = self.path, "the Kubernetes api answers again");
        }
        let patience = Duration::from_secs(seconds) + WATCH_SLACK;
        let mut splitter = Splitter::stream();
        let mut failure = None;
        let began = tokio::time::Instant::now();
        while let Some(piece) = next(&mut body, patience).await? {
            let mut each = |event: &[u8]| {
                if failure.is_none() {
                    failure = self.event(event, from).err();
                }
            };
            let split = splitter.push(&piece, &mut each);
            split.map_err(|error| error.to_string())?;
            if let Some(failure) = failure.take() {
                return Err(failure);
            }
        }
        if !splitter.is_whole() {
            return Err("the watch broke off".to_owned().into());
        }
        // A server that ends every watch at once is not asked in a loop without pauses.
        if began.elapsed() < Duration::from_secs(1) {
            return Err("the watch ended at once".to_owned().into());
        }
        Ok(())
    }

    fn event<T: Object>(&mut self, event: &[u8], from: &mut Box<str>) -> Result<(), Failure>
    where
        S: Sink<T>,
    {
        let counters = self.store.counters();
        let Ok(EventKind { kind }) = serde_json::from_slice(event) else {
            add(&counters.malformed);
            return Ok(());
        };
        if &*kind == "ERROR" {
            let status = serde_json::from_slice::<Event<Status>>(event);
            let status = status.map(|event| event.object).unwrap_or_default();
            return Err(refusal(status.code, &status.message));
        }
        let Ok(Event { object }) = serde_json::from_slice::<Event<T>>(event) else {
            add(&counters.malformed);
            return Ok(());
        };
        let version = object.metadata().resource_version.clone();
        add(&counters.events);
        match &*kind {
            "ADDED" | "MODIFIED" => self.sink.put(object),
            "DELETED" => self.sink.remove(object),
            // Bookmarks say a version and nothing else.
            _ => {}
        }
        if !version.is_empty() {
            *from = version;
        }
        Ok(())
    }
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn refusal(code: u16, message: &str) -> Failure {
    match code {
        GONE => Failure::Gone,
        _ => Failure::Other(format!("status {code}: {message}")),
    }
}

/// The body of a good answer.
async fn answer(
    api: &Api,
    path: &str,
) -> Result<impl BodyExt<Data = Bytes, Error: std::error::Error> + Unpin + Send, Failure> {
    let response = tokio::time::timeout(ANSWER, api.get(path))
        .await
        .map_err(|_| "no answer in time".to_owned())??;
    let status = response.status();
    let mut body = response.into_body();
    if status == StatusCode::OK {
        return Ok(body);
    }
    let mut text = Vec::new();
    while let Ok(Some(piece)) = next(&mut body, ANSWER).await {
        let room = ERROR_MAX.saturating_sub(text.len());
        text.extend(piece.iter().take(room));
        if text.len() >= ERROR_MAX {
            break;
        }
    }
    let said: Status = serde_json::from_slice(&text).unwrap_or_default();
    Err(refusal(status.as_u16(), &said.message))
}

/// The next piece of a body; `None` at its end.
async fn next<B>(body: &mut B, patience: Duration) -> Result<Option<Bytes>, Failure>
where
    B: BodyExt<Data = Bytes, Error: std::error::Error> + Unpin,
{
    loop {
        let frame = tokio::time::timeout(patience, body.frame()).await;
        match frame.map_err(|_| "the answer stopped".to_owned())? {
            None => return Ok(None),
            Some(Ok(frame)) => {
                if let Ok(piece) = frame.into_data() {
                    return Ok(Some(piece));
                }
            }
            Some(Err(error)) => return Err(chain(&error).into()),
        }
    }
}

/// A value of a query.
pub(super) fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}
