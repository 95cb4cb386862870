//! The thread that reads a ring until it is told to stop, writes what it reads and closes the account. What the
//! frames mean is none of its business.

use std::{
    io::{PipeReader, PipeWriter, Write},
    os::fd::AsFd,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    time::{ClockId, clock_gettime},
};
use serde::{Deserialize, Serialize};

use super::{
    error::{Error, NEEDS_KERNEL},
    frame::{Frame, FrameTap, LinkType},
    pcapng::{FileStatistics, PcapngWriter},
    ring::{Ring, RingFrame},
    socket::failed,
};

/// How long the reader may take to begin, or to do what it is told.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long the last frames are awaited on a link that does not fall silent.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);
/// Polls in a row that find nothing before the link counts as silent; each outlasts a block's retirement.
const EMPTY_POLLS: u32 = 3;

/// Where the frames of a capture go.
#[derive(Default)]
pub struct Sink {
    file: Option<PathBuf>,
    link_name: Option<String>,
    taps: Vec<FrameTap>,
}

impl Sink {
    /// Frames are counted and handed to taps, and kept nowhere.
    pub fn nowhere() -> Self {
        Self::default()
    }

    /// Frames are written to a new pcapng file at `path`; a file that is there is replaced.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self { file: Some(path.into()), ..Self::default() }
    }

    /// The name that the file gives to the link, instead of the interface's.
    pub fn link_name(mut self, name: impl Into<String>) -> Self {
        self.link_name = Some(name.into());
        self
    }

    /// Also calls `tap` with each frame, in the reader thread.
    pub fn tap(mut self, tap: FrameTap) -> Self {
        self.taps.push(tap);
        self
    }
}

/// The account of a finished capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureStats {
    /// Frames that were read and written.
    pub captured: u64,
    /// Frames that reached the socket, the dropped ones included (PACKET_STATISTICS).
    pub tp_packets: u64,
    /// Frames for which the ring had no room (PACKET_STATISTICS).
    pub tp_drops: u64,
    /// How many times the ring was full (PACKET_STATISTICS).
    pub freeze_count: u64,
    /// Frames that the interface received while the ring was open, by its own counter.
    pub link_rx_packets: u64,
    /// What that counter said just before the ring was opened.
    pub link_rx_at_start: u64,
    /// Frames that were longer than a block of the ring and are not whole in the file.
    pub cut_frames: u64,
    /// How many times the link went down, or was found down.
    pub link_down_events: u64,
    /// Processor time of the reader thread in nanoseconds.
    pub reader_cpu_ns: u64,
    /// Whether the link was silent at the end; if not, frames may have arrived after the last one read.
    pub quiet: bool,
}

impl CaptureStats {
    /// Frames the interface received that are neither captured nor known to be dropped; negative if more were
    /// captured than received. Zero means that the account closes.
    pub fn unaccounted(&self) -> i128 {
        i128::from(self.link_rx_packets) - i128::from(self.captured) - i128::from(self.tp_drops)
    }

    /// Why this capture is no complete evidence, as a sentence; `None` if it is complete: the account closes,
    /// nothing was dropped or cut, and the link was silent at the end.
    pub fn gap(&self) -> Option<String> {
        let mut gaps = Vec::new();
        if self.unaccounted() != 0 || self.tp_packets != self.captured + self.tp_drops {
            gaps.push(format!(
                "the account does not close: the interface received {}, {} reached the socket, {} were captured and {} \
                 dropped",
                self.link_rx_packets, self.tp_packets, self.captured, self.tp_drops
            ));
        }
        if self.tp_drops != 0 {
            gaps.push(format!("the kernel dropped {} frames for lack of room in the ring", self.tp_drops));
        }
        if self.cut_frames != 0 {
            gaps.push(format!("{} frames are not whole", self.cut_frames));
        }
        if !self.quiet {
            gaps.push(format!("the link was not silent {DRAIN_DEADLINE:?} after the end"));
        }
        (!gaps.is_empty()).then(|| gaps.join("; "))
    }
}

/// What the reader is to do.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Order {
    /// Read.
    Run,
    /// Leave the ring alone until the end.
    Freeze,
    /// Read what is left and close the account.
    Stop,
    /// End at once.
    Abandon,
}

/// What the reader has come to.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    /// It is about to poll for the first time.
    Ready,
    /// It no longer reads.
    Frozen,
}

/// A running capture of one link. Dropping it without [`Capture::stop`] leaves a file without an end, which
/// [`read`](super::read) reports as truncated.
#[derive(Debug)]
pub struct Capture {
    interface: String,
    link_type: LinkType,
    order: Arc<AtomicU8>,
    wake: Option<PipeWriter>,
    events: Mutex<mpsc::Receiver<Event>>,
    thread: Option<JoinHandle<Result<CaptureStats, Error>>>,
}

impl Capture {
    /// Starts the reader and returns when it polls.
    pub fn start(ring: Ring, sink: Sink) -> Result<Self, Error> {
        let interface = ring.config().interface.clone();
        let link_type = ring.link_type();
        let name = sink.link_name.as_deref().unwrap_or(&interface);
        let file = sink.file.map(|path| PcapngWriter::create(path, name, link_type)).transpose()?;
        let (wake_reader, wake) =
            std::io::pipe().map_err(failed("make a pipe for the reader", &interface, NEEDS_KERNEL))?;
        let order = Arc::new(AtomicU8::new(Order::Run as u8));
        let (events, events_receiver) = mpsc::channel();
        let reader = Reader {
            ring,
            wake: wake_reader,
            order: Arc::clone(&order),
            events,
            output: Output { frame: Frame::default(), file, taps: sink.taps, cut_frames: 0 },
            link_down_events: 0,
        };
        let thread = std::thread::Builder::new()
            .name(format!("capture-{interface}"))
            .spawn(move || reader.run())
            .map_err(|cause| Error::Thread { interface: interface.clone(), cause })?;
        let mut capture = Self {
            interface,
            link_type,
            order,
            wake: Some(wake),
            events: Mutex::new(events_receiver),
            thread: Some(thread),
        };
        match capture.await_event(&Event::Ready, "ready") {
            // The reader's own error says more than that it ended.
            Err(Error::ReaderEnded { interface }) => capture.join().and(Err(Error::ReaderEnded { interface })),
            other => other.map(|()| capture),
        }
    }

    /// Name of the interface.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// What its frames start with.
    pub fn link_type(&self) -> LinkType {
        self.link_type
    }

    /// Whether the reader is alive; when it is not, [`Capture::stop`] says why.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Makes the reader leave the ring alone until [`Capture::stop`], so that it fills up and the kernel drops
    /// frames: a fault, to test those who rely on the account. Returns when the reader has let go.
    pub fn freeze(&self) -> Result<(), Error> {
        self.give(Order::Freeze);
        self.await_event(&Event::Frozen, "frozen")
    }

    /// Tells the reader to stop, without waiting: to stop several captures at the same time.
    pub fn request_stop(&self) {
        self.give(Order::Stop);
    }

    /// Reads until the link is silent, closes the account and the file. Takes about 40 ms on a silent link and at
    /// most 2 s. The first error that the reader met, if any, is returned here.
    pub fn stop(mut self) -> Result<CaptureStats, Error> {
        self.request_stop();
        self.join()
    }

    fn give(&self, order: Order) {
        self.order.store(order as u8, Ordering::Release);
        if let Some(mut wake) = self.wake.as_ref() {
            // A reader that has ended closed the pipe; its result says why.
            let _ = wake.write_all(&[0]);
        }
    }

    fn await_event(&self, expected: &Event, state: &'static str) -> Result<(), Error> {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        match events.recv_timeout(DEADLINE) {
            Ok(event) => {
                debug_assert_eq!(event, *expected);
                Ok(())
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                Err(Error::ReaderDeadline { interface: self.interface.clone(), state, deadline: DEADLINE })
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(Error::ReaderEnded { interface: self.interface.clone() }),
        }
    }

    fn join(&mut self) -> Result<CaptureStats, Error> {
        let Some(thread) = self.thread.take() else {
            return Err(Error::ReaderEnded { interface: self.interface.clone() });
        };
        thread.join().unwrap_or_else(|panic| {
            let message = panic
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "no message".to_owned());
            Err(Error::ReaderPanicked { interface: self.interface.clone(), message })
        })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.give(Order::Abandon);
            // Nobody is left to whom the result could matter.
            let _ = self.join();
        }
    }
}

/// What lives in the thread.
struct Reader {
    ring: Ring,
    wake: PipeReader,
    order: Arc<AtomicU8>,
    events: mpsc::Sender<Event>,
    output: Output,
    link_down_events: u64,
}

impl Reader {
    fn run(mut self) -> Result<CaptureStats, Error> {
        let cpu_at_start = self.cpu_time()?;
        // A handle that is gone has also ordered the end.
        let _ = self.events.send(Event::Ready);
        let mut frozen = false;
        let quiet = loop {
            let order = self.order.load(Ordering::Acquire);
            if order == Order::Abandon as u8 {
                self.output.flush()?;
                return Err(Error::ReaderEnded { interface: self.ring.config().interface.clone() });
            } else if order == Order::Stop as u8 {
                break self.drain()?;
            } else if order == Order::Freeze as u8 {
                if !frozen {
                    frozen = true;
                    let _ = self.events.send(Event::Frozen);
                }
                self.wait(Wait::Orders)?;
            } else if !self.ring.next_block(|frame| self.output.take(frame))? {
                self.output.flush()?;
                self.wait(Wait::FramesAndOrders)?;
            }
        };
        self.close(quiet, cpu_at_start)
    }

    /// Reads until the link is silent or the deadline has passed; returns whether it was silent.
    fn drain(&mut self) -> Result<bool, Error> {
        let deadline = Instant::now() + DRAIN_DEADLINE;
        let mut empty = 0;
        while empty < EMPTY_POLLS {
            if self.ring.next_block(|frame| self.output.take(frame))? {
                empty = 0;
            } else if !self.wait(Wait::LastFrames)? {
                empty += 1;
            }
            if Instant::now() > deadline {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn close(mut self, quiet: bool, cpu_at_start: u64) -> Result<CaptureStats, Error> {
        let counters = self.ring.counters();
        let statistics = self.ring.take_statistics()?;
        let at_start = self.ring.counters_at_start();
        let received = counters.as_ref().ok().map(|now| now.rx_packets.saturating_sub(at_start.rx_packets));
        let captured = self.output.frame.sequence;
        // The file is ended even if the interface is gone: what was captured is evidence all the same.
        if let Some(file) = self.output.file.take() {
            file.finish(FileStatistics { received, dropped: Some(statistics.drops) })?;
        }
        counters?;
        Ok(CaptureStats {
            captured,
            tp_packets: statistics.packets,
            tp_drops: statistics.drops,
            freeze_count: statistics.freezes,
            link_rx_packets: received.unwrap_or_default(),
            link_rx_at_start: at_start.rx_packets,
            cut_frames: self.output.cut_frames,
            link_down_events: self.link_down_events,
            reader_cpu_ns: self.cpu_time()?.saturating_sub(cpu_at_start),
            quiet,
        })
    }

    /// Waits for a block or an order; returns whether there was anything.
    fn wait(&mut self, wait: Wait) -> Result<bool, Error> {
        let interface = &self.ring.config().interface;
        let order = PollFd::new(self.wake.as_fd(), PollFlags::POLLIN);
        let frames = PollFd::new(self.ring.socket(), PollFlags::POLLIN | PollFlags::POLLERR);
        let (mut watched, timeout) = match wait {
            Wait::Orders => (vec![order], PollTimeout::NONE),
            Wait::FramesAndOrders => (vec![order, frames], PollTimeout::NONE),
            Wait::LastFrames => {
                let past_retirement = self.ring.config().retire_ms.saturating_add(2);
                (vec![frames], PollTimeout::try_from(past_retirement).unwrap_or(PollTimeout::MAX))
            }
        };
        match poll(&mut watched, timeout) {
            Ok(0) => return Ok(false),
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(true),
            Err(errno) => return Err(failed("poll the ring", interface, NEEDS_KERNEL)(errno.into())),
        }
        let happened = |file: &PollFd<'_>| file.revents().unwrap_or(PollFlags::empty());
        let ordered = !matches!(wait, Wait::LastFrames) && !happened(&watched[0]).is_empty();
        let broken = watched.last().is_some_and(|last| happened(last).contains(PollFlags::POLLERR));
        if ordered {
            let mut bytes = [0; 16];
            match nix::unistd::read(&self.wake, &mut bytes) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(failed("read the reader's orders", interface, NEEDS_KERNEL)(errno.into())),
            }
        }
        if broken && let Some(cause) = self.ring.take_error()? {
            // A link that is down is nothing unusual: the kernel attaches the ring again when it comes up.
            if cause.raw_os_error() != Some(libc::ENETDOWN) {
                return Err(failed("receive", interface, "the capture of this link is void, run the case again")(
                    cause,
                ));
            }
            self.link_down_events += 1;
        }
        Ok(true)
    }

    fn cpu_time(&self) -> Result<u64, Error> {
        let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_err(std::io::Error::from).map_err(failed(
            "read the reader's processor time",
            &self.ring.config().interface,
            NEEDS_KERNEL,
        ))?;
        Ok(Duration::from(time).as_nanos() as u64)
    }
}

/// What is waited for.
#[derive(Clone, Copy)]
enum Wait {
    /// Orders only.
    Orders,
    /// Frames and orders.
    FramesAndOrders,
    /// Frames, for a little longer than a block takes to be handed over.
    LastFrames,
}

/// Where frames go.
struct Output {
    /// Used again for each frame; its sequence number is that of the next one.
    frame: Frame,
    file: Option<PcapngWriter>,
    taps: Vec<FrameTap>,
    cut_frames: u64,
}

impl Output {
    fn take(&mut self, captured: RingFrame<'_>) -> Result<(), Error> {
        let frame = &mut self.frame;
        frame.timestamp_ns = captured.timestamp_ns;
        frame.original_length = captured.original_length;
        frame.bytes.clear();
        match captured.vlan {
            // The kernel takes the outermost tag out of received frames; here it goes back behind the addresses.
            Some((protocol, control)) if captured.bytes.len() >= 12 => {
                let (addresses, rest) = captured.bytes.split_at(12);
                frame.bytes.extend_from_slice(addresses);
                frame.bytes.extend_from_slice(&protocol.to_be_bytes());
                frame.bytes.extend_from_slice(&control.to_be_bytes());
                frame.bytes.extend_from_slice(rest);
                frame.original_length += 4;
            }
            _ => frame.bytes.extend_from_slice(captured.bytes),
        }
        if frame.bytes.len() < frame.original_length as usize {
            self.cut_frames += 1;
        }
        if let Some(file) = &mut self.file {
            file.write(frame)?;
        }
        for tap in &mut self.taps {
            tap(frame);
        }
        frame.sequence += 1;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.file.as_mut().map_or(Ok(()), PcapngWriter::flush)
    }
}
