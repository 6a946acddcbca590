//! The thread that keeps probes in the TLS libraries that processes use.
//!
//! In: processes that start, map files and end. Out: probes, attached once for each file whatever the
//! number of processes, and taken out some time after the last one is gone. Looking into files and
//! attaching take milliseconds to seconds: never on the capture thread.

use std::mem::{Discriminant, discriminant};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::oneshot;
use tracer_common::abi::MappedFile;

use super::AppError;
use crate::discover::binary::{FileId, Found, NOT_OPENED, Scanner, Target, TlsLibrary, Unseen};
use crate::meta::ProcFs;
use crate::probes::{Attached, TlsProbes};
use crate::telemetry::snapshot::Tls;

/// News that may wait for the thread. When there are more, all processes are looked at instead.
const MOST_NEWS: usize = 4096;
/// Files that are probed at a time.
const MOST_FILES: usize = 256;
/// How long a file that nobody uses keeps its probes: the next short-lived program may use it again.
const UNUSED: Duration = Duration::from_secs(60);
/// A process that has just mapped a file maps more.
const SETTLE: Duration = Duration::from_millis(15);

/// Files that could not be looked at, of which the log tells.
const MOST_TOLD: usize = 1024;
/// Where the host's libraries are, and what they are called.
const DIRECTORIES: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
];
const NAMES: &[&str] = &["libssl.so", "libgnutls.so"];

/// A library in a file, whatever is known of its version.
type Id = (FileId, Discriminant<TlsLibrary>);

/// What happened to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    Started(u32),
    Mapped(u32, MappedFile),
    Ended(u32),
}

/// The capture thread's end.
#[derive(Clone)]
pub struct Watch {
    news: SyncSender<News>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// News were lost: look at everything.
    missed: AtomicBool,
    stop: AtomicBool,
    /// No file is to have probes now.
    paused: AtomicBool,
    /// Since the last question all probes were taken out.
    taken_out: AtomicBool,
    files: AtomicU64,
    probes: AtomicU64,
    failures: AtomicU64,
}

impl Watch {
    /// A process executes a program.
    pub fn started(&self, tgid: u32) {
        self.tell(News::Started(tgid));
    }

    /// A process mapped an executable file.
    pub fn mapped(&self, tgid: u32, file: MappedFile) {
        self.tell(News::Mapped(tgid, file));
    }

    /// A process ended.
    pub fn ended(&self, tgid: u32) {
        self.tell(News::Ended(tgid));
    }

    /// Never waits.
    fn tell(&self, news: News) {
        if let Err(TrySendError::Full(_)) = self.news.try_send(news) {
            self.shared.missed.store(true, Ordering::Relaxed);
        }
    }

    /// Has the thread end; does not wait for it.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }

    /// Has the thread take all probes out, or look for libraries again.
    pub fn pause(&self, paused: bool) {
        self.shared.paused.store(paused, Ordering::Relaxed);
    }

    /// True once after all probes were taken out: what sessions had open has no end that will be seen.
    pub fn were_taken_out(&self) -> bool {
        self.shared.taken_out.swap(false, Ordering::Relaxed)
    }

    /// Current numbers.
    pub fn counts(&self) -> Tls {
        Tls {
            files: self.shared.files.load(Ordering::Relaxed),
            probes: self.shared.probes.load(Ordering::Relaxed),
            failures: self.shared.failures.load(Ordering::Relaxed),
        }
    }
}

/// Starts the thread; `looked` is told when what runs already has its probes (with `whole_host`; else
/// only processes that start later are looked at).
pub fn start(
    probes: TlsProbes,
    proc: ProcFs,
    whole_host: bool,
    looked: oneshot::Sender<()>,
) -> Result<Watch, AppError> {
    let (news, receiver) = sync_channel(MOST_NEWS);
    let shared = Arc::new(Shared::default());
    let mut keeper = Keeper {
        probes,
        scanner: Scanner::new(proc.clone()),
        proc,
        whole_host,
        told: FxHashSet::default(),
        shared: Arc::clone(&shared),
        pausing: false,
        files: FxHashMap::default(),
        users: FxHashMap::default(),
        due: FxHashMap::default(),
    };
    std::thread::Builder::new()
        .name("tls".into())
        .spawn(move || keeper.run(&receiver, looked))
        .map_err(|error| AppError::Start("start the thread for TLS libraries", error))?;
    Ok(Watch { news, shared })
}

/// A file with TLS in it.
struct File {
    /// `None` when there is nothing in it that can be probed.
    attached: Option<Attached>,
    users: FxHashSet<u32>,
    /// Since when nobody uses it.
    unused: Option<Instant>,
    /// Stays whoever uses it: programs that live for moments would be over before.
    of_host: bool,
}

struct Keeper {
    probes: TlsProbes,
    scanner: Scanner,
    proc: ProcFs,
    /// What runs already is traced too.
    whole_host: bool,
    /// Files that cannot be looked at: said once.
    told: FxHashSet<PathBuf>,
    shared: Arc<Shared>,
    /// No file has probes.
    pausing: bool,
    files: FxHashMap<Id, File>,
    /// Files that a process uses.
    users: FxHashMap<u32, FxHashSet<Id>>,
    /// Processes to be looked at (again), when, and which of their files that will settle.
    due: FxHashMap<u32, (Instant, Vec<MappedFile>)>,
}

impl Keeper {
    fn run(&mut self, news: &Receiver<News>, looked: oneshot::Sender<()>) {
        if let Err(error) = self.probes.watch() {
            tracing::warn!(%error, "TLS libraries that are loaded later will not be seen");
        }
        self.look_at_host();
        if self.whole_host {
            self.look_at_all();
        }
        self.probes.started();
        // Nobody listens only when the agent is ending already.
        let _ = looked.send(());
        tracing::info!("what runs was looked at for TLS libraries");
        while !self.shared.stop.load(Ordering::Relaxed) {
            let wait = if self.due.is_empty() {
                Duration::from_millis(250)
            } else {
                SETTLE / 3
            };
            match news.recv_timeout(wait) {
                Ok(one) => {
                    self.take(one);
                    while let Ok(one) = news.try_recv() {
                        self.take(one);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.follow_pause();
            if self.pausing {
                continue;
            }
            if self.shared.missed.swap(false, Ordering::Relaxed) {
                self.look_at_all();
            }
            self.look_again();
            self.clean_up(Instant::now());
        }
    }

    /// Takes all probes out, or puts them back in.
    fn follow_pause(&mut self) {
        let paused = self.shared.paused.load(Ordering::Relaxed);
        if paused == self.pausing {
            return;
        }
        self.pausing = paused;
        if !paused {
            self.look_at_host();
            if self.whole_host {
                self.look_at_all();
            }
            return;
        }
        for (_, file) in self.files.drain() {
            if let Some(attached) = file.attached {
                self.probes.detach(attached);
            }
        }
        self.users.clear();
        self.due.clear();
        self.count();
        self.shared.taken_out.store(true, Ordering::Relaxed);
    }

    fn take(&mut self, news: News) {
        if self.pausing {
            return;
        }
        let again = Instant::now() + SETTLE;
        match news {
            News::Started(tgid) => {
                self.forget(tgid);
                // The program itself; what it maps from now on is told, unless it is known.
                self.look_at(tgid);
            }
            News::Mapped(tgid, file) => {
                if !self.due.contains_key(&tgid) {
                    self.look_at(tgid);
                }
                let (_, files) = self.due.entry(tgid).or_insert((again, Vec::new()));
                if files.len() < 64 {
                    files.push(file);
                }
            }
            News::Ended(tgid) => {
                self.due.remove(&tgid);
                self.forget(tgid);
            }
        }
    }

    fn look_at_all(&mut self) {
        for tgid in self.proc.pids() {
            if tgid != std::process::id() {
                self.look_at(tgid);
            }
        }
        let gone: Vec<u32> = self
            .users
            .keys()
            .filter(|tgid| self.proc.stat(**tgid).is_none())
            .copied()
            .collect();
        for tgid in gone {
            self.forget(tgid);
        }
    }

    /// Looks at those that had time to settle.
    fn look_again(&mut self) {
        let now = Instant::now();
        let due: Vec<u32> = self
            .due
            .iter()
            .filter(|(_, (at, _))| *at <= now)
            .map(|(tgid, _)| *tgid)
            .collect();
        for tgid in due {
            let Some((_, files)) = self.due.remove(&tgid) else {
                continue;
            };
            self.look_at(tgid);
            // A process that is gone was not looked at.
            if self.proc.stat(tgid).is_some() {
                let used = self.users.get(&tgid);
                for file in files {
                    let used =
                        used.is_some_and(|used| used.iter().any(|(id, _)| id.inode == file.inode));
                    if !used {
                        self.probes.set_known(&file);
                    }
                }
            }
        }
    }

    fn look_at(&mut self, tgid: u32) {
        let Some(found) = self.scanner.scan(tgid) else {
            return;
        };
        self.use_found(found, Some(tgid));
    }

    /// Libraries that programs of this host use: programs that live for moments would be over
    /// before they are found out.
    fn look_at_host(&mut self) {
        for directory in DIRECTORIES {
            let Ok(entries) = std::fs::read_dir(directory) else {
                continue;
            };
            for entry in entries.flatten() {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                if NAMES.iter().any(|prefix| name.starts_with(prefix))
                    && let Some(found) = self.scanner.file(&entry.path())
                {
                    self.use_found(found, None);
                }
            }
        }
    }

    fn use_found(&mut self, found: Found, user: Option<u32>) {
        for target in found.targets {
            self.attach(&target, user);
        }
        for Unseen { shown, reason } in found.unseen {
            if self.told.len() < MOST_TOLD && self.told.insert(shown.clone()) {
                self.shared.failures.fetch_add(1, Ordering::Relaxed);
                let file = shown.display();
                if reason == NOT_OPENED {
                    tracing::debug!(%file, %reason, "not looked into for TLS");
                } else {
                    tracing::info!(%file, %reason, "not looked into for TLS");
                }
            }
        }
    }

    fn attach(&mut self, target: &Target, user: Option<u32>) {
        let id = (target.file, discriminant(&target.library));
        if !self.files.contains_key(&id) {
            if self.files.len() >= MOST_FILES {
                self.shared.failures.fetch_add(1, Ordering::Relaxed);
                return;
            }
            let attached = self.attach_new(target);
            let file = File {
                attached,
                users: FxHashSet::default(),
                unused: Some(Instant::now()),
                of_host: user.is_none(),
            };
            self.files.insert(id, file);
            self.count();
        }
        if let (Some(tgid), Some(file)) = (user, self.files.get_mut(&id)) {
            file.users.insert(tgid);
            file.unused = None;
            self.users.entry(tgid).or_default().insert(id);
        }
    }

    fn attach_new(&mut self, target: &Target) -> Option<Attached> {
        let (file, library) = (target.shown.display(), &target.library);
        let started = Instant::now();
        if let Some(why) = target.unseen() {
            tracing::info!(%file, %library, %why, "does not see into a TLS library");
            return None;
        }
        match self.probes.attach(target) {
            Ok(attached) => {
                for (function, why) in &attached.failed {
                    self.shared.failures.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(%file, %library, ?function, %why, "cannot be probed");
                }
                if attached.is_empty() {
                    return None;
                }
                tracing::info!(
                    %file,
                    %library,
                    functions = attached.functions.len(),
                    probes = attached.len(),
                    elapsed_ms = started.elapsed().as_millis() as u64,
                    "sees into a TLS library"
                );
                Some(attached)
            }
            Err(error) => {
                self.shared.failures.fetch_add(1, Ordering::Relaxed);
                let error = anyhow::Error::from(error);
                tracing::warn!(%file, %library, error = format!("{error:#}"), "cannot be probed");
                None
            }
        }
    }

    fn forget(&mut self, tgid: u32) {
        for id in self.users.remove(&tgid).unwrap_or_default() {
            if let Some(file) = self.files.get_mut(&id) {
                file.users.remove(&tgid);
                if file.users.is_empty() {
                    file.unused = Some(Instant::now());
                }
            }
        }
    }

    /// Takes probes out of files that nobody has used for a while.
    fn clean_up(&mut self, now: Instant) {
        let is_over = |(_, file): &(&Id, &File)| {
            !file.of_host && file.unused.is_some_and(|since| now - since >= UNUSED)
        };
        if !self.files.iter().any(|entry| is_over(&entry)) {
            return;
        }
        if !self.whole_host {
            // Forked processes are not told of, and which of the host's are the command's is not known here:
            // it keeps its probes as long as it runs.
            return;
        }
        // Forked processes are not told of: a last look.
        self.look_at_all();
        let over = self.files.iter().filter(is_over);
        let over: Vec<Id> = over.map(|(id, _)| *id).collect();
        for id in &over {
            if let Some(attached) = self.files.remove(id).and_then(|file| file.attached) {
                self.probes.detach(attached);
            }
        }
        if !over.is_empty() {
            self.count();
        }
    }

    fn count(&self) {
        let attached = || {
            self.files
                .values()
                .filter_map(|file| file.attached.as_ref())
        };
        let probes: usize = attached().map(Attached::len).sum();
        let files = attached().count();
        self.shared.files.store(files as u64, Ordering::Relaxed);
        self.shared.probes.store(probes as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
