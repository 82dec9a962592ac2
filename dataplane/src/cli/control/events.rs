//! `netreeve events`: what happens to an instance, as it happens.
#![forbid(unsafe_code)]

use serde_json::Value;

use super::talk::{Found, Talk};
use super::{Events, address, get, print, print_json, text};
use crate::fault::{Fault, plain};

pub(in crate::cli) fn events(arguments: &Events) -> Result<u8, Fault> {
    let mut talk = Talk::open(&Found::named(&arguments.name)?)?;
    while let Some(event) = talk.event()? {
        if arguments.json {
            print_json(&event)?;
        } else {
            print(&line(&event))?;
        }
    }
    Ok(0)
}

fn line(event: &Value) -> String {
    let stamp = get(event, "timestamp");
    let (seconds, micros) =
        (get(stamp, "seconds").as_u64().unwrap_or(0), get(stamp, "microseconds").as_u64().unwrap_or(0));
    let mut out = format!("{}.{:03}Z {}", utc(seconds), micros / 1000, text(get(event, "event")));
    for (key, value) in get(event, "data").as_object().into_iter().flatten() {
        let value = if key == "addr" { address(value) } else { text(value) };
        out.push_str(&format!(" {}={value}", plain(key)));
    }
    out
}

/// Seconds since 1970 as a date and time of day (ISO 8601), after Howard Hinnant's `civil_from_days`.
fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_event_is_one_line() {
        assert_eq!(utc(0), "1970-01-01T00:00:00");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00");
        assert_eq!(utc(1_795_404_848), "2026-11-23T03:34:08");
        let e = json!({
            "timestamp": {"seconds": 0, "microseconds": 7_999},
            "event": "NETDEV_STREAM_CONNECTED",
            "data": {"netdev-id": "a", "addr": {"type": "unix", "path": "s\u{1b}c"}},
        });
        assert_eq!(line(&e), "1970-01-01T00:00:00.007Z NETDEV_STREAM_CONNECTED addr=unix:s?c netdev-id=a");
    }
}
