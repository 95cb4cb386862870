//! The topic "nftables": the whole ruleset as text, so that two texts are equal exactly when the rulesets do the same.
//! No handles, no use counts, no values of counters or quotas, no elements that rules or time add and remove. What follows
//! in this file is the order and the sections; `nft_objects` renders the parts.

use std::collections::BTreeMap;

use nix::errno::Errno;

use super::Error;
use super::escape::word;
use super::netlink::{Message, Netlink, attribute, encode, string};
use super::nft_objects as objects;

const SUBSYSTEM: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8;
const GET_TABLE: u16 = SUBSYSTEM | libc::NFT_MSG_GETTABLE as u16;
const GET_CHAIN: u16 = SUBSYSTEM | libc::NFT_MSG_GETCHAIN as u16;
const GET_RULE: u16 = SUBSYSTEM | libc::NFT_MSG_GETRULE as u16;
const GET_SET: u16 = SUBSYSTEM | libc::NFT_MSG_GETSET as u16;
const GET_ELEMENTS: u16 = SUBSYSTEM | libc::NFT_MSG_GETSETELEM as u16;
const GET_OBJECT: u16 = SUBSYSTEM | 19;
const GET_FLOWTABLE: u16 = SUBSYSTEM | 23;

/// NFTA_*_TABLE is 1 everywhere, and so is NFTA_TABLE_NAME.
const TABLE: u16 = 1;
/// NFTA_RULE_CHAIN, NFTA_SET_NAME, NFTA_SET_ELEM_LIST_SET, NFTA_OBJ_NAME, NFTA_FLOWTABLE_NAME.
const NAME: u16 = 2;
/// NFTA_CHAIN_NAME.
const CHAIN_NAME: u16 = 3;

/// struct nfgenmsg: family, version, resource.
pub const HEADER: usize = 4;

/// Family number and name of a table.
type Key = (u8, Vec<u8>);

#[derive(Default)]
struct Table {
    header: String,
    /// Objects, sets, flowtables, by kind and name.
    parts: BTreeMap<(u8, Vec<u8>), String>,
    /// Chains by name: header, then the rules in their order.
    chains: BTreeMap<Vec<u8>, (String, String)>,
}

/// The topic "nftables". Every table starts with a line at the left margin.
pub fn nftables(netlink: &mut Netlink) -> Result<String, Error> {
    let mut tables: BTreeMap<Key, Table> = BTreeMap::new();
    for message in netlink.dump("list the nftables tables", GET_TABLE, &header(0))? {
        let (key, rest) = key(&message);
        tables.entry(key.clone()).or_default().header = objects::table(key.0, &key.1, rest);
    }
    for message in netlink.dump("list the nftables chains", GET_CHAIN, &header(0))? {
        let (key, rest) = key(&message);
        let (family, name) = (key.0, named(rest, CHAIN_NAME));
        tables.entry(key).or_default().chains.entry(name.clone()).or_default().0 = objects::chain(family, &name, rest);
    }
    for message in netlink.dump("list the nftables rules", GET_RULE, &header(0))? {
        let (key, rest) = key(&message);
        let family = key.0;
        let chain = tables.entry(key).or_default().chains.entry(named(rest, NAME)).or_default();
        chain.1.push_str(&objects::rule(family, rest));
    }
    for message in netlink.dump("list the nftables sets", GET_SET, &header(0))? {
        let (key, rest) = key(&message);
        let name = named(rest, NAME);
        let elements = elements(netlink, &key, &name)?;
        let text = objects::set(&name, rest, &elements.iter().map(body).collect::<Vec<_>>());
        tables.entry(key).or_default().parts.insert((1, name), text);
    }
    for (order, action, get, render) in [
        (0, "list the nftables objects", GET_OBJECT, objects::object as fn(&[u8], &[u8]) -> String),
        (2, "list the nftables flowtables", GET_FLOWTABLE, objects::flowtable),
    ] {
        for message in netlink.dump(action, get, &header(0))? {
            let (key, rest) = key(&message);
            let name = named(rest, NAME);
            // Objects of different types may share a name.
            let mut sort = name.clone();
            sort.extend(attribute(rest, 3).unwrap_or_default());
            tables.entry(key).or_default().parts.insert((order, sort), render(&name, rest));
        }
    }
    Ok(tables.into_values().map(Table::render).collect())
}

impl Table {
    fn render(self) -> String {
        let mut text = self.header;
        text.extend(self.parts.into_values());
        for (header, rules) in self.chains.into_values() {
            text.push_str(&header);
            text.push_str(&rules);
        }
        text
    }
}

fn elements(netlink: &mut Netlink, (family, table): &Key, set: &[u8]) -> Result<Vec<Message>, Error> {
    let terminated = |name: &[u8]| [name, &[0]].concat();
    let mut request = header(*family);
    request.extend(encode(TABLE, &terminated(table)));
    request.extend(encode(NAME, &terminated(set)));
    match netlink.dump("list the elements of an nftables set", GET_ELEMENTS, &request) {
        // The set went away since the list was read; then the list was of a state that is gone, and so is this.
        Err(Error::Netlink { errno: Errno::ENOENT, .. }) => {
            Err(Error::Vanished { what: format!("nftables set {} in table {}", word(set), word(table)) })
        }
        other => other,
    }
}

fn header(family: u8) -> Vec<u8> {
    vec![family, 0, 0, 0]
}

fn body(message: &Message) -> &[u8] {
    message.body.get(HEADER..).unwrap_or_default()
}

fn key(message: &Message) -> (Key, &[u8]) {
    let rest = body(message);
    ((message.body.first().copied().unwrap_or_default(), named(rest, TABLE)), rest)
}

fn named(rest: &[u8], kind: u16) -> Vec<u8> {
    attribute(rest, kind).map(string).unwrap_or_default().to_vec()
}
