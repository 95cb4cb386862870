//! Local forwarders with servers of their own: dnsmasq(8) and unbound(8), each at 127.0.0.1, as an administrator sets them up.

use super::service::{Program, Service, ServiceError};
use crate::{
    layer,
    sandbox::{Client, Node},
    testbed::plan::{ISP_V4, LAN_V4},
};
use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket, UnixStream},
};

/// Where they answer.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// Where unbound is asked what it was told (unbound-control(8)).
const UNBOUND_CONTROL: &str = "/run/unbound.ctl";
/// A forwarder answers on the machine itself, at once.
const ANSWER: Duration = Duration::from_secs(2);

/// A forwarder: the program, and its configuration.
pub(super) struct Forwarder {
    program: Program,
    file: &'static str,
    text: fn() -> String,
}

pub(super) const DNSMASQ: Forwarder = Forwarder {
    program: Program {
        name: "dnsmasq",
        package: "dnsmasq-base",
        layer: &layer::DNSMASQ,
        path: "/usr/sbin/dnsmasq",
        // In the foreground, with its log on standard error, as the user that starts it.
        arguments: &["--no-daemon", "--conf-file=/etc/dnsmasq.conf"],
        environment: &[],
        ready: None,
    },
    file: "/etc/dnsmasq.conf",
    text: || {
        format!(
            "no-resolv\nserver={LAN_V4}\nserver={ISP_V4}\nlisten-address={ADDRESS}\nbind-interfaces\npid-file=\n\
             cache-size=1000\n"
        )
    },
};

pub(super) const UNBOUND: Forwarder = Forwarder {
    program: Program {
        name: "unbound",
        package: "unbound",
        layer: &layer::UNBOUND,
        path: "/usr/sbin/unbound",
        arguments: &["-d", "-c", "/etc/unbound/unbound.conf"],
        environment: &[],
        ready: None,
    },
    file: "/etc/unbound/unbound.conf",
    // It answers what is below `test.` itself unless it is told not to, and the testbed's names are there.
    text: || {
        format!(
            "server:\n  interface: {ADDRESS}\n  do-daemonize: no\n  use-syslog: no\n  logfile: \"\"\n  chroot: \"\"\n  \
             directory: \"/etc/unbound\"\n  pidfile: \"\"\n  username: \"unbound\"\n  num-threads: 1\n  \
             module-config: \"iterator\"\n  local-zone: \"test.\" nodefault\n\n\
             remote-control:\n  control-enable: yes\n  control-interface: \"{UNBOUND_CONTROL}\"\n\n\
             forward-zone:\n  name: \".\"\n  forward-addr: {LAN_V4}\n  forward-addr: {ISP_V4}\n"
        )
    },
};

/// Configures and starts it, and waits until it listens.
pub(super) async fn start(
    forwarder: &'static Forwarder,
    client: &Client,
    node: &Node,
    folder: &Path,
) -> Result<Service, ServiceError> {
    node.run(|| async {
        let path = Path::new(forwarder.file);
        let failed = |source| ServiceError::File { action: "write", path: path.into(), source };
        fs::create_dir_all(path.parent().unwrap_or(path)).map_err(failed)?;
        fs::write(path, (forwarder.text)()).map_err(failed)
    })
    .await??;
    let service = Service::start(&forwarder.program, client, folder).await?;
    service.ready_when(node, || async { answers().await.map_err(|error| error.to_string()) }).await?;
    Ok(service)
}

/// Returns when somebody listens there. To be called inside the client.
pub(super) async fn answers() -> io::Result<()> {
    // There is no event for a port that is opened by a stranger; the caller has the deadline.
    const BETWEEN: Duration = Duration::from_millis(10);
    let mut ticks = tokio::time::interval(BETWEEN);
    loop {
        ticks.tick().await;
        match TcpStream::connect(SocketAddr::from((ADDRESS, 53))).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            connected => return connected.map(drop),
        }
    }
}

/// Which forwarder a profile has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// dnsmasq.
    Dnsmasq,
    /// unbound.
    Unbound,
}

impl Which {
    /// Its name in the history and in topics.
    pub fn name(self) -> &'static str {
        match self {
            Which::Dnsmasq => "dnsmasq",
            Which::Unbound => "unbound",
        }
    }

    /// The servers that it forwards to, as it tells them itself. To be called inside the client.
    pub async fn upstreams(self) -> io::Result<Vec<String>> {
        in_time(async {
            match self {
                Which::Dnsmasq => of_dnsmasq().await,
                Which::Unbound => unbound("list_forwards").await.map(|text| forwards(&text)),
            }
        })
        .await
    }

    /// Canonical text of what else it can be told while it runs: of unbound which names it asks others for, answers itself or does
    /// not validate; dnsmasq is told nothing else but by its configuration. To be called inside the client.
    pub async fn settings(self) -> io::Result<String> {
        match self {
            Which::Dnsmasq => Ok(String::new()),
            Which::Unbound => in_time(settings_of_unbound()).await,
        }
    }
}

async fn in_time<T>(asked: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", ANSWER.as_secs()));
    tokio::time::timeout(ANSWER, asked).await.unwrap_or_else(|elapsed| Err(late(elapsed)))
}

/// dnsmasq(8): TXT records of class CHAOS tell of it.
async fn of_dnsmasq() -> io::Result<Vec<String>> {
    const QUESTION: &[u8] = b"\x57\x54\x01\0\0\x01\0\0\0\0\0\0\x07servers\x04bind\0\0\x10\0\x03";
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    socket.connect((ADDRESS, 53)).await?;
    socket.send(QUESTION).await?;
    let mut answer = [0; 4096];
    let length = socket.recv(&mut answer).await?;
    let texts = texts_behind(&answer[..length], QUESTION.len());
    texts.map(|texts| servers_bind(&texts)).ok_or_else(|| io::Error::other("its answer to servers.bind is no list"))
}

/// The strings of the one TXT record of an answer whose question ends at `at` (RFC 1035, sections 3.3.14 and 4.1.3).
fn texts_behind(answer: &[u8], at: usize) -> Option<Vec<String>> {
    // The owner's name, a pointer; type, class, time to live, length.
    const FIXED: usize = 2 + 2 + 2 + 4;
    let length = answer.get(at + FIXED..at + FIXED + 2)?;
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    let mut rest = answer.get(at + FIXED + 2..at + FIXED + 2 + length)?;
    let mut texts = Vec::new();
    while let Some((size, after)) = rest.split_first() {
        let (text, after) = after.split_at_checked(usize::from(*size))?;
        texts.push(String::from_utf8_lossy(text).into_owned());
        rest = after;
    }
    Some(texts)
}

/// `192.168.1.1#53 12 0`: the server, and counters of queries and failures.
fn servers_bind(texts: &[String]) -> Vec<String> {
    let servers = texts.iter().filter_map(|text| text.split(' ').next());
    servers.map(|server| server.strip_suffix("#53").unwrap_or(server).to_owned()).collect()
}

/// What unbound lists of what it can be told (unbound-control(8)), and whether the order of a line's words says something.
const LISTS: [(&str, bool); 5] = [
    ("list_forwards", false),
    ("list_stubs", false),
    ("list_insecure", false),
    ("list_local_zones", true),
    ("list_local_data", true),
];

/// Options of which names are believed and who is asked (unbound.conf(5)); they can be set while it runs.
const OPTIONS: [&str; 11] = [
    "do-ip4",
    "do-ip6",
    "do-not-query-address",
    "domain-insecure",
    "ignore-cd-flag",
    "outgoing-interface",
    "private-address",
    "private-domain",
    "tcp-upstream",
    "tls-upstream",
    "val-permissive-mode",
];

async fn settings_of_unbound() -> io::Result<String> {
    let mut text = String::new();
    for (list, ordered) in LISTS {
        text += &canonical(list, &unbound(list).await?, ordered);
    }
    for option in OPTIONS {
        text += &canonical(&format!("option {option}"), &unbound(&format!("get_option {option}")).await?, true);
    }
    Ok(text)
}

/// What unbound answers to a command: a connection over its socket is one command.
async fn unbound(command: &str) -> io::Result<String> {
    let mut socket = UnixStream::connect(UNBOUND_CONTROL).await?;
    socket.write_all(format!("UBCT1 {command}\n").as_bytes()).await?;
    let mut text = String::new();
    socket.read_to_string(&mut text).await?;
    match text.strip_prefix("error ") {
        Some(words) => Err(io::Error::other(format!("{command}: {}", words.trim_end()))),
        None => Ok(text),
    }
}

/// An answer's lines, each behind its name, sorted; the words of a line too, unless their order says something.
fn canonical(name: &str, answer: &str, ordered: bool) -> String {
    let mut lines: Vec<String> = answer
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            if ordered {
                return format!("{name} {}\n", line.trim_end());
            }
            let mut words: Vec<&str> = line.split_whitespace().collect();
            // The zone comes first.
            if let Some((_, others)) = words.split_first_mut() {
                others.sort_unstable();
            }
            format!("{name} {}\n", words.join(" "))
        })
        .collect();
    lines.sort_unstable();
    lines.concat()
}

/// `. IN forward 192.168.1.1 198.51.100.53`, a line a zone; a `+` before an address is a switch.
fn forwards(text: &str) -> Vec<String> {
    let words = text.lines().filter_map(|line| line.split_once(" forward ")).flat_map(|(_, words)| words.split(' '));
    let mut servers: Vec<String> = words.filter(|word| word.contains(['.', ':'])).map(str::to_owned).collect();
    // Their order says nothing: it asks whom it finds the quickest.
    servers.sort_unstable();
    servers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_unbound_lists_has_one_order() {
        let stubs = "b.test. IN stub noprime 10.0.0.2 10.0.0.1\n. IN stub prime A.ROOT. 198.41.0.4\n\n";
        assert_eq!(
            canonical("list_stubs", stubs, false),
            "list_stubs . 198.41.0.4 A.ROOT. IN prime stub\nlist_stubs b.test. 10.0.0.1 10.0.0.2 IN noprime stub\n"
        );
        let data = "www.test.\t300\tIN\tTXT\t\"b  c\" \"a\"\n\na.test.\t300\tIN\tA\t192.0.2.1\n\n";
        assert_eq!(
            canonical("list_local_data", data, true),
            "list_local_data a.test.\t300\tIN\tA\t192.0.2.1\nlist_local_data www.test.\t300\tIN\tTXT\t\"b  c\" \"a\"\n"
        );
        assert_eq!(canonical("option do-ip6", "yes\n", true), "option do-ip6 yes\n");
        assert_eq!(canonical("list_insecure", "", false), "");
    }

    #[test]
    fn servers_are_read_from_what_forwarders_tell() {
        let texts = ["192.168.1.1#53 3 0".to_owned(), "fd00:1::1#53 0 0".to_owned(), "9.9.9.9#5353 0 0".to_owned()];
        assert_eq!(servers_bind(&texts), ["192.168.1.1", "fd00:1::1", "9.9.9.9#5353"]);
        assert_eq!(forwards(". IN forward 192.168.1.1 198.51.100.53\n"), ["192.168.1.1", "198.51.100.53"]);
        assert_eq!(forwards("example. IN forward +i fd00:1::1\n"), ["fd00:1::1"]);
        assert!(forwards("").is_empty());
        let answer = b"head\xc0\x0c\0\x10\0\x03\0\0\0\0\0\x08\x03a b\x03c d";
        assert_eq!(texts_behind(answer, 4), Some(vec!["a b".to_owned(), "c d".to_owned()]));
        assert_eq!(texts_behind(&answer[..20], 4), None);
    }
}
