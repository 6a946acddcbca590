//! The exporter of a network backend, OTLP or Zipkin: from batches to messages to the sender.
//!
//! Without a spool a message is given up (`export_failed`) when `OTEL_BSP_EXPORT_TIMEOUT` is over,
//! the last attempt included. With one, `super::spooled` decides what goes to disk.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::backend::{Backend, Limit, Message, otlp_label};
use super::delivery::{Delivery, reason};
use super::encode::TraceEncoder;
use super::queue::{ExportFuture, Exporter, Queue};
use super::resource::ResourceDefaults;
use super::sender::{Patience, Sender, Tally};
use super::settings::{OtlpSettings, ZipkinSettings};
use super::spool::{Spool, log::Log};
use super::stats::ExporterStats;
use super::{ExportError, http_client, spooled};

/// One network backend.
#[derive(Debug)]
pub struct NetworkExporter {
    sender: Sender,
    messages: Messages,
    export_timeout: Duration,
    spool: Option<(PathBuf, Log)>,
}

/// Makes messages of spans.
#[derive(Debug)]
pub struct Messages {
    encoder: TraceEncoder,
    limit: Arc<Limit>,
}

impl Messages {
    /// All of `spans`, in as many messages as their size asks for.
    pub fn of(&mut self, delivery: &Delivery) -> Vec<Message> {
        let mut rest = delivery.spans();
        let mut messages = Vec::new();
        while !rest.is_empty() {
            self.encoder.set_max_message_bytes(self.limit.bytes());
            let encoded = self.encoder.encode(rest);
            messages.push(Message {
                otlp: encoded.message,
                spans: encoded.spans as u64,
            });
            rest = rest.get(encoded.spans.max(1)..).unwrap_or_default();
        }
        messages
    }
}

impl NetworkExporter {
    /// An OTLP endpoint. Connects only when there is something to send; needs a tokio runtime.
    pub fn otlp(
        settings: &OtlpSettings,
        export_timeout: Duration,
        defaults: Arc<ResourceDefaults>,
    ) -> Result<Self, ExportError> {
        let backend = Backend::otlp(settings)?;
        let sender = Sender::new(backend, otlp_label(settings), settings.timeout);
        Ok(Self::new(sender, export_timeout, defaults))
    }

    /// A Zipkin endpoint.
    pub fn zipkin(
        settings: &ZipkinSettings,
        export_timeout: Duration,
        defaults: Arc<ResourceDefaults>,
    ) -> Result<Self, ExportError> {
        let endpoint = http_client::shown(&settings.endpoint);
        let sender = Sender::new(Backend::zipkin(settings)?, endpoint, settings.timeout);
        Ok(Self::new(sender, export_timeout, defaults))
    }

    fn new(sender: Sender, export_timeout: Duration, defaults: Arc<ResourceDefaults>) -> Self {
        let limit = Arc::clone(sender.limit());
        Self {
            messages: Messages {
                encoder: TraceEncoder::new(defaults, limit.bytes()),
                limit,
            },
            sender,
            export_timeout,
            spool: None,
        }
    }

    /// Keeps on disk what the backend does not take, in a directory of its own below `directory`.
    pub fn with_spool(
        mut self,
        directory: &std::path::Path,
        max_bytes: u64,
    ) -> Result<Self, ExportError> {
        let directory = directory.join(self.sender.name());
        match Log::open(&directory, max_bytes) {
            Ok(log) => {
                self.spool = Some((directory, log));
                Ok(self)
            }
            Err(source) => Err(ExportError::Spool { directory, source }),
        }
    }

    async fn deliver(&mut self, delivery: &mut Delivery, stats: &ExporterStats) {
        for message in self.messages.of(delivery) {
            let give_up = Instant::now() + self.export_timeout;
            let mut tally = Tally::default();
            let left = self
                .sender
                .send(message, Patience::Until(give_up), stats, &mut tally)
                .await;
            delivery.accept(tally.accepted);
            delivery.lose(reason::REJECTED, tally.rejected);
            let left = left.iter().map(|message| message.spans).sum();
            delivery.lose(reason::EXPORT_FAILED, left);
        }
    }
}

impl Exporter for NetworkExporter {
    fn name(&self) -> &'static str {
        self.sender.name()
    }

    fn export<'a>(
        &'a mut self,
        delivery: &'a mut Delivery,
        stats: &'a ExporterStats,
    ) -> ExportFuture<'a> {
        Box::pin(self.deliver(delivery, stats))
    }

    fn run(mut self: Box<Self>, queue: Queue) -> ExportFuture<'static> {
        let Some((directory, log)) = self.spool.take() else {
            return Box::pin(super::queue::one_by_one(self, queue));
        };
        let ledger = Arc::clone(&queue.ledger);
        match Spool::start(log, &directory, ledger, Arc::clone(&queue.stats)) {
            Ok(spool) => {
                let Self {
                    sender, messages, ..
                } = *self;
                Box::pin(spooled::run(sender, messages, spool, queue))
            }
            Err(error) => {
                tracing::error!(%error, "cannot start the spool's thread; spans wait in memory only");
                Box::pin(super::queue::one_by_one(self, queue))
            }
        }
    }
}
