//! A client and a far side, two network namespaces joined by a veth pair, with resolvers on the far side.

use super::Test;
use futures::StreamExt;
use hickory_proto::{
    op::{Message, OpCode, ResponseCode},
    rr::{RData, Record, RecordType, rdata},
};
use nix::sched::{CloneFlags, setns, unshare};
use nlink::netlink::{
    Connection, Nftables, Route, RtnetlinkGroup,
    addr::{Ipv4Address, Ipv6Address},
    link::VethLink,
    messages::AddressMessage,
    nftables::{BaseChain, Chain, Family, FilterHook, Priority, Rule},
};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    fs::File,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
    process::{Child, Command},
    sync::oneshot,
};
use tokio_rustls::{TlsAcceptor, rustls};
use watertight::agent::{
    AgentClient,
    wire::{Event, ProbeSpec, Qtype, Via},
};

pub const CLIENT_V4: &str = "192.0.2.2";
pub const CLIENT_V6: &str = "2001:db8::2";
pub const FAR_V4: &str = "192.0.2.1";
pub const FAR_V6: &str = "2001:db8::1";
pub const ANSWER_V4: &str = "198.51.100.7";
pub const ANSWER_V6: &str = "2001:db8:7::7";

/// An address and port.
pub fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

/// Both far resolvers.
pub fn far() -> [SocketAddr; 2] {
    [at(FAR_V4, 53), at(FAR_V6, 53)]
}

/// A probe whose name is its id. It waits long, so that a busy machine fails no test, unless its name says that there will be
/// nothing to wait for.
pub fn spec(name: &str, via: Via) -> ProbeSpec {
    let timeout_ms = if name.starts_with("silent") { 400 } else { 5000 };
    ProbeSpec { id: name.into(), name: name.into(), qtype: Qtype::A, via, timeout_ms, as_uid: None, as_gid: None }
}

/// Runs a test in a lab of its own, on a thread that is in the client's namespace.
pub fn with(test: Test) {
    let run = move || {
        if let Err(errno) = unshare(CloneFlags::CLONE_NEWNET) {
            let reason = format!("no network namespace: {errno}");
            assert!(std::env::var_os("WATERTIGHT_REQUIRE_PRIVILEGES").is_none_or(|value| value != "1"), "{reason}");
            println!("skipped: {reason}");
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let lab = Lab::new().await;
            tokio::time::timeout(Duration::from_secs(60), test(lab)).await.expect("the test took too long");
        });
    };
    if let Err(panic) = thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

/// The lab; the far side's servers end with it.
pub struct Lab {
    far: Arc<File>,
    seen: Arc<Mutex<Vec<Seen>>>,
    _stop: oneshot::Sender<()>,
}

/// A query at the far side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub name: String,
    pub from: SocketAddr,
    pub transport: &'static str,
}

impl Lab {
    async fn new() -> Self {
        no_dad();
        let far = Arc::new(
            thread::spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).unwrap();
                no_dad();
                File::open("/proc/thread-self/ns/net").unwrap()
            })
            .join()
            .unwrap(),
        );
        let near = Connection::<Route>::new().unwrap();
        let remote = Connection::<Route>::new_in(far.as_fd()).unwrap();
        let link = VethLink::new("eth0", "far0").peer_netns_fd(&*far).address(CLIENT_MAC).peer_address(FAR_MAC);
        near.add_link(link).await.unwrap();
        for (connection, link, v4, v6) in [(&near, "eth0", CLIENT_V4, CLIENT_V6), (&remote, "far0", FAR_V4, FAR_V6)] {
            connection.set_link_up("lo").await.unwrap();
            connection.set_link_up(link).await.unwrap();
            connection.add_address(Ipv4Address::new(link, v4.parse().unwrap(), 24)).await.unwrap();
            connection.add_address(Ipv6Address::new(link, v6.parse().unwrap(), 64).nodad()).await.unwrap();
        }
        tokio::time::timeout(Duration::from_secs(10), async {
            usable(&near, Connection::<Route>::new().unwrap()).await;
            usable(&remote, Connection::<Route>::new_in(far.as_fd()).unwrap()).await;
        })
        .await
        .expect("the addresses did not become usable");
        let seen = Arc::default();
        let (stop, stopped) = oneshot::channel();
        let lab = Self { far, seen: Arc::clone(&seen), _stop: stop };
        let (ready, is_ready) = oneshot::channel();
        lab.at_far(move || {
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(serve(seen, ready, stopped));
            })
        });
        is_ready.await.unwrap();
        lab
    }

    /// Does something in the far namespace; sockets made there stay there.
    pub fn at_far<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let far = Arc::clone(&self.far);
        thread::spawn(move || {
            setns(far.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
        .join()
        .unwrap()
    }

    /// The queries for a name that the far side has seen.
    pub fn seen(&self, name: &str) -> Vec<Seen> {
        self.seen.lock().unwrap().iter().filter(|seen| seen.name == name).cloned().collect()
    }

    /// The agent, as root.
    pub async fn agent(&self) -> Agent {
        Agent::start(None, None).await
    }

    /// The agent, as an ordinary user.
    pub async fn user_agent(&self) -> Agent {
        Agent::start(Some(65_534), None).await
    }

    /// The agent, in a mount namespace where /etc/resolv.conf is another file.
    pub async fn agent_with_resolv_conf(&self, file: &Path) -> Agent {
        Agent::start(None, Some(file)).await
    }

    /// Replaces the client's rules by one chain; the rules are for table `t`, chain `c`.
    pub async fn rules(&self, family: Family, hook: FilterHook, rules: Vec<Rule>) {
        let connection = Connection::<Nftables>::new().unwrap();
        connection.flush_ruleset().await.unwrap();
        connection.add_table("t", family).await.unwrap();
        let chain = Chain::new("t", "c").unwrap().family(family).base(BaseChain::filter(hook, Priority::Filter));
        connection.add_chain(chain).await.unwrap();
        for rule in rules {
            connection.add_rule(rule.family(family)).await.unwrap();
        }
    }

    /// Removes the client's rules.
    pub async fn no_rules(&self) {
        Connection::<Nftables>::new().unwrap().flush_ruleset().await.unwrap();
    }

    /// Everything that arrives at the far end of the link from now on.
    pub fn capture(&self) -> Capture {
        self.at_far(|| {
            let all = Protocol::from(i32::from((libc::ETH_P_ALL as u16).to_be()));
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(all)).unwrap();
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(64 << 20)).unwrap();
            socket.set_nonblocking(true).unwrap();
            Capture(socket)
        })
    }
}

pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub const FAR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A rule of the lab's chain.
pub fn rule() -> Rule {
    Rule::new("t", "c")
}

/// Waits for the link-local address, which the kernel makes when the link has a carrier; the others are usable then, too.
async fn usable(connection: &Connection<Route>, watch: Connection<Route>) {
    watch.subscribe(&[RtnetlinkGroup::Ipv6Addr]).unwrap();
    let mut events = watch.into_events().await;
    loop {
        let addresses = connection.get_addresses().await.unwrap();
        let link_local = |address: &&AddressMessage| matches!(address.address(), Some(IpAddr::V6(address)) if address.is_unicast_link_local());
        if addresses.iter().any(|address| link_local(&address))
            && !addresses.iter().any(|address| address.is_tentative())
        {
            return;
        }
        events.next().await.unwrap().unwrap();
    }
}

/// Addresses are usable at once. The files are the namespace's own.
fn no_dad() {
    for which in ["all", "default"] {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/accept_dad"), "0").unwrap();
    }
}

/// Frames at the far end.
pub struct Capture(Socket);

impl Capture {
    /// The frames that have come from the client since the last call. A veth hands frames over in the send itself, so what
    /// has been sent is here.
    pub fn frames(&self) -> Vec<Vec<u8>> {
        use std::io::Read;
        let mut frames = Vec::new();
        let mut buffer = [0; 2048];
        while let Ok(length) = (&self.0).read(&mut buffer) {
            if buffer[6..12] == CLIENT_MAC {
                frames.push(buffer[..length].to_vec());
            }
        }
        frames
    }

    /// Those of them that are UDP, TCP or a part of it, and not the links' own business.
    pub fn packets(&self) -> Vec<Vec<u8>> {
        let transport = |frame: &Vec<u8>| match frame[12..14] {
            [0x08, 0x00] => [6, 17].contains(&frame[23]),
            // Fragment and hop-by-hop headers too, but not those of multicast listener reports.
            [0x86, 0xdd] => [0, 6, 17, 44].contains(&frame[20]) && !(frame[20] == 0 && frame[54] == 58),
            _ => false,
        };
        self.frames().into_iter().filter(transport).collect()
    }
}

/// An agent process and the engine's handle on it.
pub struct Agent {
    pub client: AgentClient,
    pub child: Child,
    events: Arc<Mutex<Vec<Event>>>,
    names: AtomicU64,
}

impl Agent {
    async fn start(uid: Option<u32>, resolv_conf: Option<&Path>) -> Self {
        let mut command = command();
        if let Some(uid) = uid {
            command.uid(uid).gid(uid);
        }
        if let Some(file) = resolv_conf {
            let file = std::ffi::CString::new(file.to_str().unwrap()).unwrap();
            let private = move || {
                use nix::mount::{MsFlags, mount};
                const NONE: Option<&std::ffi::CStr> = None;
                unshare(CloneFlags::CLONE_NEWNS)?;
                mount(NONE, c"/", NONE, MsFlags::MS_PRIVATE | MsFlags::MS_REC, NONE)?;
                mount(Some(file.as_c_str()), c"/etc/resolv.conf", NONE, MsFlags::MS_BIND, NONE)?;
                Ok(())
            };
            // SAFETY: the closure makes system calls only; its strings were allocated before.
            unsafe { command.pre_exec(private) };
        }
        let mut child = command.spawn().unwrap();
        let events = Arc::new(Mutex::new(Vec::new()));
        let recorder = Arc::clone(&events);
        let client = AgentClient::new(child.stdout.take().unwrap(), child.stdin.take().unwrap(), move |event| {
            recorder.lock().unwrap().push(event.clone());
        });
        let (_, running_as) = client.ping().await.unwrap();
        assert_eq!(running_as, uid.unwrap_or(0));
        Self { client, child, events, names: AtomicU64::new(0) }
    }

    /// A name that nobody has asked for.
    pub fn fresh_name(&self) -> String {
        format!("n{}.probe.test", self.names.fetch_add(1, Ordering::Relaxed))
    }

    /// As that, for a probe that nobody will answer.
    pub fn silent_name(&self) -> String {
        format!("silent-{}", self.fresh_name())
    }

    /// What the recorder has seen.
    pub fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }
}

/// The agent's command, with piped input and output and almost no environment.
pub fn command() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("@agent")
        .env_clear()
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true);
    command
}

/// The far side's resolvers: port 53 over UDP and TCP, port 853 over TLS. Names that begin with "silent" get no answer.
async fn serve(seen: Arc<Mutex<Vec<Seen>>>, ready: oneshot::Sender<()>, stopped: oneshot::Receiver<()>) {
    for address in [FAR_V4, FAR_V6] {
        let udp = UdpSocket::bind(at(address, 53)).await.unwrap();
        tokio::spawn(datagrams(udp, Arc::clone(&seen)));
        spawn_streams(address, 53, None, &seen).await;
        spawn_streams(address, 853, Some(acceptor()), &seen).await;
    }
    // Link-local addresses too, on a port of their own: the wildcard of port 53 would be in the way of the others.
    let udp = UdpSocket::bind("[::]:5353").await.unwrap();
    tokio::spawn(datagrams(udp, Arc::clone(&seen)));
    let _ = ready.send(());
    let _ = stopped.await;
}

async fn spawn_streams(address: &str, port: u16, tls: Option<TlsAcceptor>, seen: &Arc<Mutex<Vec<Seen>>>) {
    // With fast open, so that data in a SYN is taken.
    let socket = Socket::new(Domain::for_address(at(address, port)), Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&at(address, port).into()).unwrap();
    socket.listen(64).unwrap();
    socket.set_nonblocking(true).unwrap();
    let listener = TcpListener::from_std(socket.into()).unwrap();
    let seen = Arc::clone(seen);
    tokio::spawn(async move {
        while let Ok((stream, from)) = listener.accept().await {
            let seen = Arc::clone(&seen);
            match tls.clone() {
                None => drop(tokio::spawn(messages(stream, from, "tcp", seen))),
                Some(tls) => drop(tokio::spawn(async move {
                    if let Ok(stream) = tls.accept(stream).await {
                        messages(stream, from, "tls", seen).await;
                    }
                })),
            }
        }
    });
}

async fn datagrams(socket: UdpSocket, seen: Arc<Mutex<Vec<Seen>>>) {
    let mut buffer = [0; 1500];
    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
        if let Some(reply) = reply(&buffer[..length], from, "udp", &seen) {
            let _ = socket.send_to(&reply, from).await;
        }
    }
}

async fn messages(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    from: SocketAddr,
    transport: &'static str,
    seen: Arc<Mutex<Vec<Seen>>>,
) {
    while let Ok(length) = stream.read_u16().await {
        let mut message = vec![0; usize::from(length)];
        if stream.read_exact(&mut message).await.is_err() {
            return;
        }
        if let Some(reply) = reply(&message, from, transport, &seen) {
            let framed = [&(reply.len() as u16).to_be_bytes()[..], &reply].concat();
            let _ = stream.write_all(&framed).await;
            let _ = stream.flush().await;
        }
    }
}

fn reply(bytes: &[u8], from: SocketAddr, transport: &'static str, seen: &Mutex<Vec<Seen>>) -> Option<Vec<u8>> {
    let query = Message::from_vec(bytes).ok()?;
    let question = query.queries.first()?.clone();
    let name = question.name().to_string().trim_end_matches('.').to_owned();
    seen.lock().unwrap().push(Seen { name: name.clone(), from, transport });
    if name.starts_with("silent") {
        return None;
    }
    let mut message = Message::response(query.metadata.id, OpCode::Query);
    if name.starts_with("missing") {
        message.metadata.response_code = ResponseCode::NXDomain;
    } else {
        let data = match (question.query_type(), ANSWER_V4.parse().unwrap(), ANSWER_V6.parse().unwrap()) {
            (RecordType::AAAA, _, IpAddr::V6(address)) => RData::AAAA(rdata::AAAA(address)),
            (_, IpAddr::V4(address), _) => RData::A(rdata::A(address)),
            _ => return None,
        };
        message.add_answer(Record::from_rdata(question.name().clone(), 0, data));
    }
    message.add_query(question);
    message.to_vec().ok()
}

fn acceptor() -> TlsAcceptor {
    let certified = rcgen::generate_simple_self_signed(vec!["resolver.test".into()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key.into())
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}
