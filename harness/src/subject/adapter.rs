//! The adapter's process and the lines that go to and fro.

use super::SubjectCommand;
use crate::sandbox::{Client, Node, Process, ProcessEnd, SandboxError, Spawn, be_prompt};
use serde::Serialize;
use serde_json::Value;
use std::{
    collections::HashMap,
    io,
    path::Path,
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
    sync::{mpsc, oneshot},
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
        let (answering, reading, told) = (answers.clone(), process.clone(), on_event.clone());
        let begun = reader.run(move || async move {
            let stdout = pipe::Receiver::from_owned_fd(stdout)?;
            tokio::task::spawn_local(read_lines(stdout, answering, reading, told));
            Ok::<_, io::Error>(())
        });
        begun.await?.map_err(SandboxError::system("read the adapter's output"))?;
        let mut end = process.end();
        let pending = answers.clone();
        tokio::spawn(async move {
            let how = match end.wait_for(Option::is_some).await {
                Ok(how) => how.expect("waited for it"),
                Err(_) => return,
            };
            // Dropping the senders tells every open call.
            pending.lock().expect("no holder panics").clear();
            on_event(SubjectEvent::Ended(how));
        });
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

async fn read_lines(stdout: pipe::Receiver, answers: Answers, process: Arc<Process>, on_event: OnEvent) {
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
            let _ = process.signal(nix::sys::signal::Signal::SIGKILL);
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
