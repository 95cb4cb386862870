//! The adapter's process and the lines that go to and fro.

use super::SubjectCommand;
use crate::sandbox::{Client, Node, Process, ProcessEnd, SandboxError, Spawn, be_prompt};
use futures::FutureExt;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use serde_json::Value;
use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::unix::pipe,
    process::ChildStdin,
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use watertight_protocol::{
    ErrorObject, Incoming, MAX_LINE_BYTES, MAX_LINES_PER_SECOND, Request, State, StateResult, method,
};

/// What an adapter did by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubjectEvent {
    /// It reported a state.
    State(State),
    /// It answered a call.
    Answered,
    /// It broke the protocol; its process was killed.
    Violation(String),
    /// Its process ended.
    Ended(ProcessEnd),
}

/// A call that did not give a result.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The adapter refused.
    #[error("'{method}' was refused: {error}")]
    Refused {
        /// The method.
        method: String,
        /// The adapter's words.
        error: ErrorObject,
    },
    /// No answer in time.
    #[error("'{method}' was not answered within {} s", after.as_secs())]
    TimedOut {
        /// The method.
        method: String,
        /// How long was waited.
        after: Duration,
    },
    /// The process is gone.
    #[error("'{method}' was not answered: the adapter ended")]
    Gone {
        /// The method.
        method: String,
    },
}

type Answers = Arc<Mutex<HashMap<u64, oneshot::Sender<Result<Value, ErrorObject>>>>>;
/// Called from the thread that reads the adapter's lines, in order.
pub type OnEvent = Arc<dyn Fn(SubjectEvent) + Send + Sync>;

/// A running adapter.
#[derive(Debug)]
pub struct Subject {
    process: Arc<Process>,
    lines: mpsc::UnboundedSender<Option<String>>,
    answers: Answers,
    next_id: AtomicU64,
    /// Reads the adapter's lines. When a state was reported counts, however much else there is to do.
    _reader: Node,
}

impl Subject {
    /// Starts the adapter's process. Its standard error is appended to `log`.
    pub async fn start(
        client: &Client,
        command: &SubjectCommand,
        log: &Path,
        on_event: OnEvent,
    ) -> Result<Self, SandboxError> {
        let mut environment = vec![
            ("PATH".to_owned(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
            ("HOME".to_owned(), "/root".to_owned()),
        ];
        environment.extend(command.environment.iter().cloned());
        let spawn =
            Spawn { program: command.program.clone(), arguments: command.arguments.clone(), environment, user: None };
        let mut process = spawn.start(client).await?;
        let stdin = process.stdin.take().expect("its input is piped");
        let stdout = process.stdout.take().expect("its output is piped");
        let mut stderr = process.stderr.take().expect("its errors are piped");
        let file = std::fs::File::options()
            .append(true)
            .create(true)
            .open(log)
            .map_err(SandboxError::system(format!("open the subject's log {}", log.display())))?;
        tokio::spawn(async move {
            let mut file = tokio::fs::File::from_std(file);
            // A subject that floods its log does not fill the disk.
            let _ = tokio::io::copy(&mut (&mut stderr).take(16 << 20), &mut file).await;
            let _ = file.flush().await;
            let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
        });
        let process = Arc::new(process);
        let answers = Answers::default();
        let (lines, queue) = mpsc::unbounded_channel();
        tokio::spawn(write_lines(stdin, queue));
        let stdout = stdout.into_owned_fd().map_err(SandboxError::system("take the adapter's output"))?;
        let reader = Node::start("subject", || {
            be_prompt();
            Ok(())
        });
        let reader = reader.await?;
        let (answering, end, told) = (answers.clone(), process.end(), on_event);
        let killed = process.clone();
        let kill = move || drop(killed.signal(nix::sys::signal::Signal::SIGKILL));
        let begun = reader.run(move || async move {
            let stdout = pipe::Receiver::from_owned_fd(stdout)?;
            let unread = stdout.as_fd().try_clone_to_owned()?;
            tokio::task::spawn_local(crate::watch::stay_awake());
            tokio::task::spawn_local(read_until_the_end(stdout, unread, answering, end, kill, told));
            Ok::<_, io::Error>(())
        });
        begun.await?.map_err(SandboxError::system("read the adapter's output"))?;
        Ok(Self { process, lines, answers, next_id: AtomicU64::new(1), _reader: reader })
    }

    /// Sends a request and gives back what its answer will be.
    pub fn send(&self, method: &str, params: impl Serialize) -> Pending {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let request = Request {
            jsonrpc: "2.0".into(),
            id: Some(id.into()),
            method: method.into(),
            params: serde_json::to_value(params).expect("parameters are plain structures"),
        };
        self.send_raw(id, method, serde_json::to_string(&request).expect("a plain structure"))
    }

    /// Sends a line as it is; an answer with `id` is its answer.
    pub fn send_raw(&self, id: u64, method: &str, line: String) -> Pending {
        let (tell, answer) = oneshot::channel();
        // Told by an ended process already? Then the call is over before it begins.
        if self.process.ended().is_none() {
            self.answers.lock().expect("no holder panics").insert(id, tell);
            if self.process.ended().is_some() {
                self.answers.lock().expect("no holder panics").remove(&id);
            }
            let _ = self.lines.send(Some(line));
        }
        Pending { id, method: method.into(), answer }
    }

    /// Sends a request and waits for its answer.
    pub async fn call(&self, method: &str, params: impl Serialize, within: Duration) -> Result<Value, CallError> {
        self.send(method, params).within(within).await
    }

    /// Closes the adapter's standard input.
    pub fn close_input(&mut self) {
        let _ = self.lines.send(None);
    }

    /// The adapter's process.
    pub fn process(&self) -> &Process {
        &self.process
    }
}

/// An answer that is awaited.
#[derive(Debug)]
pub struct Pending {
    /// The request's id.
    pub id: u64,
    method: String,
    answer: oneshot::Receiver<Result<Value, ErrorObject>>,
}

impl Pending {
    /// Waits for the answer.
    pub async fn within(self, limit: Duration) -> Result<Value, CallError> {
        let method = self.method;
        match timeout(limit, self.answer).await {
            Err(_) => Err(CallError::TimedOut { method, after: limit }),
            Ok(Err(_)) => Err(CallError::Gone { method }),
            Ok(Ok(Err(error))) => Err(CallError::Refused { method, error }),
            Ok(Ok(Ok(result))) => Ok(result),
        }
    }
}

async fn write_lines(mut stdin: ChildStdin, mut queue: mpsc::UnboundedReceiver<Option<String>>) {
    while let Some(Some(mut line)) = queue.recv().await {
        line.push('\n');
        if stdin.write_all(line.as_bytes()).await.is_err() || stdin.flush().await.is_err() {
            // The process ended or closed its input: open calls learn of it by its end or their deadline.
            break;
        }
    }
}

/// How long what the process left in its pipe may take to be read. Somebody else may hold the pipe and go on writing.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Reads until the process has ended and every line that it wrote before was read; tells of the end behind them.
async fn read_until_the_end(
    stdout: pipe::Receiver,
    unread: OwnedFd,
    answers: Answers,
    mut end: watch::Receiver<Option<ProcessEnd>>,
    kill: impl Fn(),
    on_event: OnEvent,
) {
    let mut reading = pin!(read_lines(stdout, answers.clone(), kill, on_event.clone()).fuse());
    let mut is_read = false;
    let how = loop {
        tokio::select! {
            biased;
            how = end.wait_for(Option::is_some) => match how {
                Ok(how) => break how.expect("waited for it"),
                Err(_) => return,
            },
            () = &mut reading, if !is_read => is_read = true,
        }
    };
    // What it has written is in the pipe: an answer must not come behind the end.
    let last_lines = async {
        while has_input(&unread) {
            tokio::select! {
                biased;
                () = &mut reading => return,
                () = tokio::task::yield_now() => {}
            }
        }
    };
    if !is_read {
        let _ = timeout(LAST_LINES, last_lines).await;
    }
    // Dropping the senders tells every open call.
    answers.lock().expect("no holder panics").clear();
    on_event(SubjectEvent::Ended(how));
}

/// Whether there is something to read, or nobody who could write.
fn has_input(pipe: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    poll(&mut asked, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

async fn read_lines(stdout: pipe::Receiver, answers: Answers, kill: impl Fn(), on_event: OnEvent) {
    let mut reader = BufReader::with_capacity(1 << 16, stdout);
    let mut buffer = Vec::new();
    let (mut second, mut lines) = (Instant::now(), 0usize);
    loop {
        buffer.clear();
        let violation = match read_line(&mut reader, &mut buffer).await {
            Ok(false) => return,
            Ok(true) => {
                if second.elapsed() >= Duration::from_secs(1) {
                    (second, lines) = (Instant::now(), 0);
                }
                lines += 1;
                if lines > MAX_LINES_PER_SECOND {
                    Some(format!("more than {MAX_LINES_PER_SECOND} lines within a second"))
                } else {
                    handle_line(&buffer, &answers, &on_event).err()
                }
            }
            Err(violation) => Some(violation),
        };
        if let Some(violation) = violation {
            kill();
            on_event(SubjectEvent::Violation(violation));
            // Drained, so that the dying process does not block; nothing more is believed.
            let _ = tokio::io::copy(&mut reader, &mut tokio::io::sink()).await;
            return;
        }
    }
}

/// Reads a line without its end into `buffer`. `Ok(false)` at the end of the stream.
async fn read_line(reader: &mut (impl AsyncBufRead + Unpin), buffer: &mut Vec<u8>) -> Result<bool, String> {
    let read =
        reader.take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', buffer).await.map_err(|error| error.to_string())?;
    if read == 0 {
        return Ok(false);
    }
    if buffer.len() > MAX_LINE_BYTES {
        return Err(format!("a line longer than {MAX_LINE_BYTES} bytes"));
    }
    if buffer.last() != Some(&b'\n') {
        // The process ended in the middle of a line; its end says the rest.
        return Ok(false);
    }
    buffer.pop();
    Ok(true)
}

fn handle_line(line: &[u8], answers: &Answers, on_event: &OnEvent) -> Result<(), String> {
    let shown = || {
        let text = String::from_utf8_lossy(line);
        text.chars().take(120).collect::<String>()
    };
    let value: Value =
        serde_json::from_slice(line).map_err(|error| format!("a line that is not JSON ({error}): {}", shown()))?;
    let message: Incoming = serde_json::from_value(value)
        .map_err(|error| format!("a message that is not JSON-RPC ({error}): {}", shown()))?;
    if let Some(name) = message.method {
        // Unknown notifications are ignored.
        if name == method::STATE_CHANGED {
            let state: StateResult = serde_json::from_value(message.params)
                .map_err(|error| format!("a state_changed without a state ({error}): {}", shown()))?;
            on_event(SubjectEvent::State(state.state));
        }
        return Ok(());
    }
    let id = message.id.unwrap_or(Value::Null);
    let waiting = id.as_u64().and_then(|id| answers.lock().expect("no holder panics").remove(&id));
    if waiting.is_some() {
        // In the order of the lines: the caller hears of it later.
        on_event(SubjectEvent::Answered);
    }
    match (waiting, message.result, message.error) {
        (None, ..) => Err(format!("an answer to nothing: {}", shown())),
        (Some(tell), _, Some(error)) => {
            let _ = tell.send(Err(error));
            Ok(())
        }
        (Some(tell), result, None) => {
            let _ = tell.send(Ok(result.unwrap_or(Value::Null)));
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// What is told of a process that has ended, with this in its pipe, which somebody else still holds.
    async fn told_after_the_end(written: &[u8]) -> (Vec<SubjectEvent>, Result<Value, CallError>) {
        let (stdout, mut held) = io::pipe().expect("a pipe");
        held.write_all(written).expect("it has room");
        let answers = Answers::default();
        let (tell, answer) = oneshot::channel();
        answers.lock().expect("no holder panics").insert(7, tell);
        let (_keep, end) = watch::channel(Some(ProcessEnd::Exited(0)));
        let events: Arc<Mutex<Vec<SubjectEvent>>> = Arc::default();
        let seen = events.clone();
        let on_event: OnEvent = Arc::new(move |event| seen.lock().expect("no holder panics").push(event));
        let unread = OwnedFd::from(stdout.try_clone().expect("a descriptor"));
        let stdout = pipe::Receiver::from_owned_fd(stdout.into()).expect("a pipe to read");
        read_until_the_end(stdout, unread, answers, end, || {}, on_event).await;
        let answer = Pending { id: 7, method: "shutdown".into(), answer }.within(LAST_LINES).await;
        let events = events.lock().expect("no holder panics").clone();
        (events, answer)
    }

    #[tokio::test]
    async fn what_a_process_wrote_before_it_ended_is_read_before_its_end_is_told() {
        let (events, answer) = told_after_the_end(
            b"{\"jsonrpc\":\"2.0\",\"method\":\"state_changed\",\"params\":{\"state\":\"disconnected\"}}\n\
              {\"jsonrpc\":\"2.0\",\"id\":7,\"result\":{}}\n",
        )
        .await;
        let state = SubjectEvent::State(State::Disconnected);
        assert_eq!(events, [state, SubjectEvent::Answered, SubjectEvent::Ended(ProcessEnd::Exited(0))]);
        assert_eq!(answer, Ok(serde_json::json!({})));
    }

    #[tokio::test]
    async fn a_line_without_an_end_is_no_answer() {
        let (events, answer) = told_after_the_end(b"{\"jsonrpc\":\"2.0\",\"id\":7,\"result\":{}}").await;
        assert_eq!(events, [SubjectEvent::Ended(ProcessEnd::Exited(0))]);
        assert_eq!(answer, Err(CallError::Gone { method: "shutdown".into() }));
    }
}
