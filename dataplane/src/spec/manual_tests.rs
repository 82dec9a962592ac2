//! The manual, the completions' types and the examples know what the options know.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::*;

const PAGE: &str = include_str!("../../../packaging/man/netreeve.1");
/// No key is near to it, so the complaint lists those that are known.
const NOBODYS: &str = "qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq=1";

/// Texts that together make each type read all of its keys.
const TEXTS: &[(&str, &str)] = &[
    ("tap", "tap,id=a"),
    ("tap", "tap,id=a,fd=5"),
    ("tap", "tap,id=a,fds=5:6"),
    ("bridge", "bridge,id=a"),
    ("af-xdp", "af-xdp,id=a,ifname=e"),
    ("af-xdp", "af-xdp,id=a,ifname=e,macs=52:54:00:00:00:01"),
    ("stream", "stream,id=a,addr.type=unix,addr.path=p"),
    ("stream", "stream,id=a,addr.type=inet,addr.host=h,addr.port=1"),
    ("stream", "stream,id=a,addr.type=fd,addr.str=5"),
    ("stream", "stream,id=a,addr.type=vsock,addr.cid=2,addr.port=1"),
    ("vhost-user", "vhost-user,id=a,path=p"),
    ("dgram", "dgram,id=a,local.type=unix,local.path=l,remote.type=unix,remote.path=r"),
    (
        "dgram",
        "dgram,id=a,local.type=inet,local.host=h,local.port=1,remote.type=inet,remote.host=h,remote.port=1",
    ),
    ("dgram", "dgram,id=a,local.type=fd,local.str=5"),
    ("socket", "socket,id=a,udp=h:1,localaddr=h:2"),
    ("vde", "vde,id=a"),
    ("vde", "vde,id=a,server=on,sock=s"),
    ("l2tpv3", "l2tpv3,id=a,src=s,dst=d,udp=on,srcport=1,dstport=2,txsession=1"),
    ("hubport", "hubport,id=a,hubid=0"),
    ("user", "user,id=a"),
];

/// The part of the page under `.Ss name`.
fn section(name: &str) -> &'static str {
    let from = PAGE.split_once(&format!("\n.Ss {name}\n")).unwrap_or_else(|| panic!("no .Ss {name}")).1;
    from.split("\n.S").next().unwrap_or_default()
}

/// The keys that stand as items of a part.
fn items(part: &str) -> BTreeSet<String> {
    let items = part.lines().filter(|l| l.starts_with(".It ") || l.starts_with(".Cm "));
    let words = items.flat_map(|l| l.split([' ', ','])).filter_map(|w| w.split_once('=').map(|(k, _)| k));
    words.filter(|k| !k.is_empty()).map(str::to_owned).collect()
}

fn known(text: &str, role: &str) -> BTreeSet<String> {
    let fault = match role {
        "netdev" => Config::read(&[format!("{text},{NOBODYS}")], &[], None).unwrap_err(),
        _ => {
            Config::read(&["tap,id=t".to_owned()], &[format!("{text},netdev=t,{NOBODYS}")], None).unwrap_err()
        }
    };
    let list = fault.fix.strip_prefix("keys here: ").unwrap_or_else(|| panic!("{text}: {fault}"));
    list.split(", ").map(str::to_owned).collect()
}

#[test]
fn the_manual_names_every_key_and_no_other() {
    let common = items(section("every port"));
    let kinds = [
        "user",
        "tap",
        "bridge",
        "af-xdp",
        "stream",
        "dgram",
        "socket",
        "l2tpv3",
        "vde",
        "vhost-user",
        "hubport",
    ];
    for kind in kinds {
        let mut keys = BTreeSet::new();
        for (_, text) in TEXTS.iter().filter(|(k, _)| *k == kind) {
            keys.extend(known(text, "netdev"));
            // A user network is no device.
            if kind != "user" {
                keys.extend(known(text, "device"));
            }
        }
        let (page, common_here): (BTreeSet<_>, _) = (items(section(kind)), &common);
        let missing: Vec<_> = keys.difference(&page).filter(|k| !common_here.contains(*k)).collect();
        assert!(missing.is_empty(), "netreeve.1, {kind}, lacks {missing:?}");
        let unknown: Vec<_> = page.difference(&keys).collect();
        assert!(unknown.is_empty(), "netreeve.1, {kind}, has {unknown:?}, which nobody reads");
        assert!(["type", "id", "netdev", "lock-mac"].iter().all(|k| common.contains(*k)), "{common:?}");
    }
}

#[test]
fn the_manual_names_every_key_of_objects_and_no_other() {
    let kind = "filter-dump";
    let mut config = Config::read(&["tap,id=t".to_owned()], &[], None).unwrap();
    let fault = config.objects(&[format!("{kind},id=f,netdev=t,file=x,{NOBODYS}")]).unwrap_err();
    let list = fault.fix.strip_prefix("keys here: ").unwrap_or_else(|| panic!("{kind}: {fault}"));
    let keys: BTreeSet<String> = list.split(", ").map(str::to_owned).collect();
    let page: BTreeSet<String> =
        items(section(kind)).into_iter().chain(["id".into(), "type".into()]).collect();
    assert_eq!(page, keys, "{kind}");
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/examples")
}

#[test]
fn every_example_configuration_is_read_without_a_word() {
    let mut seen = 0;
    for entry in fs::read_dir(examples()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "toml") {
            continue;
        }
        let name = path.display().to_string();
        let body = fs::read_to_string(&path).unwrap();
        let config = Config::read(&[], &[], Some((&name, &body))).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(!config.wires.is_empty() && config.unjoined().count() == 0, "{name}");
        assert_eq!(config.warnings, Vec::<String>::new(), "{name}");
        seen += 1;
    }
    assert!(seen >= 4, "{seen} examples: have they moved?");
}

/// Option texts in the recipes: `--netdev 'TEXT'` and `--device 'TEXT'` of netreeve, one command after another.
#[test]
fn every_recipe_is_read() {
    let mut seen = 0;
    for file in ["RECIPES.md", "../../README.md"] {
        let text = fs::read_to_string(examples().join(file)).unwrap().replace("\\\n", " ");
        for line in text.lines().filter(|l| l.trim_start().starts_with("netreeve ")) {
            let own = line.split(" -- ").next().unwrap_or_default();
            let of = |option: &str| -> Vec<String> {
                let parts = own.split(option).skip(1).filter_map(|p| p.trim_start().strip_prefix('\''));
                parts.filter_map(|p| p.split_once('\'')).map(|(t, _)| t.to_owned()).collect()
            };
            let (netdevs, devices) = (of("--netdev"), of("--device"));
            if netdevs.is_empty() {
                continue;
            }
            Config::read(&netdevs, &devices, None).unwrap_or_else(|e| panic!("{file}: {own}: {e}"));
            seen += 1;
        }
    }
    assert!(seen >= 8, "{seen} recipes: have they moved?");
}
