//! Tables for people: columns as wide as their widest cell.
#![forbid(unsafe_code)]

/// Lines of a table with these heads. A column whose head begins with a space is set to the right.
pub(super) fn lines(heads: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let wide = |n: usize| {
        let cells = rows.iter().filter_map(|r| r.get(n)).map(|c| c.chars().count());
        cells.chain(heads.get(n).map(|h| h.trim().len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(wide).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut out = String::new();
        for ((cell, width), head) in cells.zip(&widths).zip(heads) {
            let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
            if head.starts_with(' ') {
                out.push_str(&pad);
                out.push_str(cell);
            } else {
                out.push_str(cell);
                out.push_str(&pad);
            }
            out.push_str("  ");
        }
        out.trim_end().to_owned()
    };
    let head = line(&mut heads.iter().map(|h| h.trim()));
    std::iter::once(head).chain(rows.iter().map(|r| line(&mut r.iter().map(String::as_str)))).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let row = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        let got = super::lines(&["name", " n"], &[row("a", "1000"), row("longer", "7")]);
        assert_eq!(got, ["name       n", "a       1000", "longer     7"]);
    }
}
