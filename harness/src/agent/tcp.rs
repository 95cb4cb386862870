//! A query over a TCP connection, plain or in TLS. Connections are reset at the end: an orderly close would go on
//! retransmitting for a minute, into states the probe does not belong to.

use super::{
    endpoint::Endpoint,
    message::Question,
    sockets,
    trial::{self, Trial},
    wire::{Bind, Outcome, Stage},
};
use nix::poll::PollFlags;
use socket2::{Protocol, SockAddr, Socket, Type};
use std::{
    io::{self, Read, Write},
    net::SocketAddr,
    os::fd::AsRawFd,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_rustls::rustls::{
    self, ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

/// One attempt with a fresh connection.
pub(super) fn probe(
    trial: &mut Trial,
    server: &Endpoint,
    bind: &Bind,
    mark: Option<u32>,
    fast_open: bool,
    question: &Question,
) -> Outcome {
    let early = fast_open.then(|| question.framed());
    match connected(trial, server, bind, mark, early.as_deref()) {
        Ok((socket, server, taken)) => {
            let what = format!("talk to {server}/tcp");
            let mut stream = DeadlineStream { socket: &socket, deadline: trial.deadline };
            exchange(trial, &mut stream, &question.framed()[taken..], question, server, &what)
        }
        Err(outcome) => outcome,
    }
}

/// One attempt with a fresh connection and TLS.
pub(super) fn probe_tls(
    trial: &mut Trial,
    server: &Endpoint,
    bind: &Bind,
    mark: Option<u32>,
    question: &Question,
) -> Outcome {
    let (socket, server, _) = match connected(trial, server, bind, mark, None) {
        Ok(connected) => connected,
        Err(outcome) => return outcome,
    };
    let what = format!("talk to {server}/tls");
    let mut tls = match tls_to(server) {
        Ok(tls) => tls,
        Err(error) => return Outcome::NotPossible { reason: format!("prepare TLS: {error}") },
    };
    let mut stream = DeadlineStream { socket: &socket, deadline: trial.deadline };
    while tls.is_handshaking() {
        if let Err(error) = tls.complete_io(&mut stream) {
            return ended(trial, &error, Stage::Handshake, &what);
        }
    }
    let mut stream = rustls::Stream::new(&mut tls, &mut stream);
    exchange(trial, &mut stream, &question.framed(), question, server, &what)
}

/// One more query on an open connection.
pub(super) fn probe_open(trial: &mut Trial, socket: &Socket, server: SocketAddr, question: &Question) -> Outcome {
    let mut stream = DeadlineStream { socket, deadline: trial.deadline };
    trial.tried = true;
    exchange(trial, &mut stream, &question.framed(), question, server, &format!("talk to {server}/tcp"))
}

/// A connection, told about before its first packet. Also tells how many bytes of `early` went into the SYN.
pub(super) fn connected(
    trial: &mut Trial,
    server: &Endpoint,
    bind: &Bind,
    mark: Option<u32>,
    early: Option<&[u8]>,
) -> Result<(Socket, SocketAddr, usize), Outcome> {
    let not_possible = |reason| Outcome::NotPossible { reason };
    let server = server.resolve().map_err(|error| not_possible(error.to_string()))?;
    let socket = sockets::towards(server, Type::STREAM, Protocol::TCP, bind, mark).map_err(not_possible)?;
    socket.set_linger(Some(Duration::ZERO)).map_err(|error| not_possible(format!("set SO_LINGER: {error}")))?;
    socket.set_tcp_nodelay(true).map_err(|error| not_possible(format!("set TCP_NODELAY: {error}")))?;
    // The port is wanted before the SYN leaves, so it is taken here and not by connect.
    if !matches!(bind, Bind::Source(_)) {
        sockets::bind_address(&socket, unspecified(server)).map_err(not_possible)?;
    }
    trial.announce(sockets::local(&socket));

    let what = format!("connect to {server}/tcp");
    trial.tried = true;
    let started = match early {
        Some(early) => {
            without_cookie(&socket).map_err(|error| not_possible(format!("set TCP_FASTOPEN_NO_COOKIE: {error}")))?;
            socket.send_to_with_flags(early, &SockAddr::from(server), libc::MSG_FASTOPEN)
        }
        None => socket.connect(&SockAddr::from(server)).map(|()| 0),
    };
    let taken = match started {
        Ok(taken) => taken,
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => 0,
        Err(error) => return Err(trial::failed_at_once(&error, &what, None)),
    };
    trial.sent();
    trial.note_local(sockets::local(&socket));
    match sockets::wait(&socket, PollFlags::POLLOUT, trial.deadline) {
        Err(error) => Err(trial::failed_at_once(&error, &what, None)),
        Ok(ready) if ready.is_empty() => Err(trial.no_answer(Stage::Connect)),
        Ok(_) => match socket.take_error() {
            Ok(None) => Ok((socket, server, taken)),
            Ok(Some(error)) | Err(error) => Err(trial::refused_later(&error, &what)),
        },
    }
}

fn unspecified(server: SocketAddr) -> SocketAddr {
    match server {
        SocketAddr::V4(_) => ([0; 4], 0).into(),
        SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
    }
}

/// Lets the SYN carry data although the server has given no cookie (TCP_FASTOPEN_NO_COOKIE, tcp(7)).
fn without_cookie(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option takes an int, and `on` is one that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_FASTOPEN_NO_COOKIE,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends what is left of the query and reads messages until its answer.
fn exchange(
    trial: &mut Trial,
    stream: &mut (impl Read + Write),
    rest: &[u8],
    question: &Question,
    server: SocketAddr,
    what: &str,
) -> Outcome {
    if let Err(error) = stream.write_all(rest).and_then(|()| stream.flush()) {
        return ended(trial, &error, Stage::Answer, what);
    }
    trial.sent();
    loop {
        let mut length = [0; 2];
        let read = stream.read_exact(&mut length).and_then(|()| {
            let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut message).map(|()| message)
        });
        match read {
            Ok(message) => {
                if let Some(answer) = question.answer(&message) {
                    return answer.outcome(Some(server), trial.since_sent());
                }
            }
            Err(error) => return ended(trial, &error, Stage::Answer, what),
        }
    }
}

fn ended(trial: &Trial, error: &io::Error, stage: Stage, what: &str) -> Outcome {
    if error.kind() == io::ErrorKind::TimedOut && error.raw_os_error().is_none() {
        trial.no_answer(stage)
    } else {
        trial::refused_later(error, what)
    }
}

/// A non-blocking socket that reads and writes as if it blocked, until a deadline.
struct DeadlineStream<'a> {
    socket: &'a Socket,
    deadline: Instant,
}

impl DeadlineStream<'_> {
    fn retry<T>(&self, ready: PollFlags, mut call: impl FnMut(&Socket) -> io::Result<T>) -> io::Result<T> {
        loop {
            match call(self.socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
            if sockets::wait(self.socket, ready, self.deadline)?.is_empty() {
                // Without an error number, to tell it from the kernel's ETIMEDOUT.
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the deadline of the probe has passed"));
            }
        }
    }
}

impl Read for DeadlineStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.retry(PollFlags::POLLIN, |mut socket| socket.read(buffer))
    }
}

impl Write for DeadlineStream<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.retry(PollFlags::POLLOUT, |mut socket| socket.write(buffer))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn tls_to(server: SocketAddr) -> Result<ClientConnection, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    ClientConnection::new(Arc::new(config), ServerName::IpAddress(server.ip().into()))
}

/// Takes every certificate: whether a packet leaves is what is tested, not who answers it.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
