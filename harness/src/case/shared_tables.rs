//! Tables of the kernel that all network namespaces of a machine share: while one is full, packets cannot be sent, by nobody's fault
//! who is judged.

use std::{
    fs::File,
    io::{self, Read, Seek},
};

/// Tables of neighbours (arp(7), icmp(7)) with what they are, and the limit that each has.
const TABLES: [(&str, &str, &str); 2] = [
    ("/proc/net/stat/arp_cache", "IPv4", "net.ipv4.neigh.default.gc_thresh3"),
    ("/proc/net/stat/ndisc_cache", "IPv6", "net.ipv6.neigh.default.gc_thresh3"),
];
/// The column that counts how often there was no room.
const FULL: &str = "table_fulls";

/// The machine's tables, which are told of in its first network namespace alone, and how often each had been full.
#[derive(Debug, Default)]
pub struct SharedTables(Vec<(File, usize, u64)>);

impl SharedTables {
    /// Opens them where this process is, and notes how things are. One that is not to be had here tells nothing.
    pub fn open() -> Self {
        let open = |(index, (path, ..)): (usize, &(&str, &str, &str))| {
            let mut file = File::open(path).ok()?;
            let count = times_full(&mut file).ok()??;
            Some((file, index, count))
        };
        Self(TABLES.iter().enumerate().filter_map(open).collect())
    }

    /// Those that have been full since, in words.
    pub fn problems(&mut self) -> Vec<String> {
        self.0
            .iter_mut()
            .filter_map(|(file, index, before)| {
                let times = times_full(file).ok()??.saturating_sub(*before);
                let (_, family, limit) = TABLES[*index];
                (times > 0).then(|| {
                    format!(
                        "the machine's table of {family} neighbours, which all network namespaces share, was full {times} times: packets \
                         were not sent; run fewer cases at once (--jobs, --test-threads), or raise {limit}"
                    )
                })
            })
            .collect()
    }
}

/// The sum over all processors: a line each, in hexadecimal, below the names of the columns.
fn times_full(file: &mut File) -> io::Result<Option<u64>> {
    file.rewind()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(sum(&text))
}

fn sum(text: &str) -> Option<u64> {
    let mut lines = text.lines();
    let column = lines.next()?.split_whitespace().position(|name| name == FULL)?;
    lines.map(|line| u64::from_str_radix(line.split_whitespace().nth(column)?, 16).ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::sum;

    #[test]
    fn the_processors_are_added_up_and_what_is_no_such_table_tells_nothing() {
        let text = "entries  allocs   table_fulls\n000004a6 000b10d1 0000002d\n000004a6 000a9ded 00000036\n";
        assert_eq!(sum(text), Some(0x2d + 0x36));
        assert_eq!(sum("entries  allocs\n000004a6 000b10d1\n"), None);
        assert_eq!(sum("entries table_fulls\n000004a6 many\n"), None);
        assert_eq!(sum(""), None);
    }
}
