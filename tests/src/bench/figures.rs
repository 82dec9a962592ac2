//! All samples of a run and what they come to: medians, extremes, ratios round by round, goals met or missed.

use std::collections::BTreeMap;

use super::case::Who;
use super::micro::Cost;
use super::row::{Figure, Goal, Row, Value};
use crate::{Trouble, trouble};

/// All samples of a run.
#[derive(Default)]
pub struct Figures {
    /// By row and by who was measured, in the order of the rounds.
    pub rows: Vec<(Row, BTreeMap<Who, Vec<Sampled>>)>,
    /// The device side's costs.
    pub device: Vec<Cost>,
    /// What could not be measured, and why.
    pub failures: Vec<String>,
}

/// One round's outcome.
#[derive(Clone, Debug)]
pub enum Sampled {
    /// The row's figures.
    Values(Vec<Value>),
    /// It cannot be done here, and why.
    Skipped(String),
    /// It should have been done.
    Failed,
}

/// Why a sample could not be taken.
#[derive(Debug)]
pub enum Miss {
    /// It cannot be done here: why.
    Skipped(String),
    /// It should have been done.
    Failed(Trouble),
}

impl From<Trouble> for Miss {
    fn from(t: Trouble) -> Self {
        Self::Failed(t)
    }
}

impl Miss {
    /// A trouble with what was being done.
    #[must_use]
    pub fn within(self, what: &str) -> Self {
        match self {
            Self::Failed(t) => Self::Failed(trouble(format!("{what}: {t}"))),
            skipped => skipped,
        }
    }
}

/// A sample or why there is none.
pub type Taken<T> = Result<T, Miss>;

/// The middle of some values and their extremes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The median.
    pub mid: f64,
    /// The least.
    pub low: f64,
    /// The most.
    pub high: f64,
}

/// What one figure of one row came to for one of them.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    /// In the figure's unit.
    pub value: Spread,
    /// Median CPU nanoseconds a frame.
    pub ns_frame: Option<f64>,
    /// Median CPU seconds a GiB.
    pub s_gib: Option<f64>,
    /// Median share of the processor.
    pub share: Option<f64>,
    /// In most rounds the load was the limit.
    pub load_bound: bool,
}

/// Netreeve beside somebody else, better being more than 1.
#[derive(Clone, Debug)]
pub struct Ratio {
    /// The row's name.
    pub row: String,
    /// The figure.
    pub figure: Figure,
    /// Which of ours.
    pub ours: Who,
    /// Beside whom.
    pub beside: Who,
    /// Our figure and theirs.
    pub values: (f64, f64),
    /// The ratios of the rounds.
    pub times: Spread,
    /// Ratio of the CPU time for the same work, if both are known.
    pub cpu: Option<f64>,
    /// The load was our limit.
    pub load_bound: bool,
    /// What is wanted.
    pub goal: Option<f64>,
}

/// A goal and where it stands.
#[derive(Clone, Debug)]
pub struct Stand {
    /// Row, figure and goal in words.
    pub what: String,
    /// What was measured.
    pub is: String,
    /// It is met, as far as the medians say.
    pub met: bool,
    /// Not met, but why that decides nothing.
    pub undecided: Option<&'static str>,
}

/// The middle value; of an even number of values, the mean of the two in the middle.
#[must_use]
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut v: Vec<f64> = values.into_iter().collect();
    v.sort_by(f64::total_cmp);
    let mid = |i: usize| v.get(i).copied().unwrap_or(f64::NAN);
    if v.len() % 2 == 1 {
        mid(v.len() / 2)
    } else {
        f64::midpoint(mid((v.len() / 2).wrapping_sub(1)), mid(v.len() / 2))
    }
}

/// Median and extremes; none of nothing.
#[must_use]
pub fn spread(values: &[f64]) -> Option<Spread> {
    (!values.is_empty()).then(|| Spread {
        mid: median(values.iter().copied()),
        low: values.iter().copied().fold(f64::INFINITY, f64::min),
        high: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    })
}

/// The median of those that are there.
fn some_median(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let v: Vec<f64> = values.flatten().collect();
    (!v.is_empty()).then(|| median(v))
}

/// The values of figure `i` by round; a round that gave none leaves a gap.
fn of_figure(samples: &[Sampled], i: usize) -> Vec<Option<Value>> {
    let value = |s: &Sampled| match s {
        Sampled::Values(v) => v.get(i).copied(),
        _ => None,
    };
    samples.iter().map(value).collect()
}

/// What figure `i` came to.
#[must_use]
pub fn cell(samples: &[Sampled], i: usize) -> Option<Cell> {
    let all: Vec<Value> = of_figure(samples, i).into_iter().flatten().collect();
    let values: Vec<f64> = all.iter().map(|v| v.value).collect();
    Some(Cell {
        value: spread(&values)?,
        ns_frame: some_median(all.iter().map(|v| v.ns_frame)),
        s_gib: some_median(all.iter().map(|v| v.s_gib)),
        share: some_median(all.iter().map(|v| v.share)),
        load_bound: all.iter().filter(|v| v.load_bound).count() * 2 > all.len(),
    })
}

impl Figures {
    /// Figures for these rows, empty.
    #[must_use]
    pub fn new(rows: &[Row]) -> Self {
        Self { rows: rows.iter().map(|r| (r.clone(), BTreeMap::new())).collect(), ..Self::default() }
    }

    /// Adds a round's outcome.
    pub fn add(&mut self, row: usize, who: Who, sampled: Sampled) {
        if let Some((_, cells)) = self.rows.get_mut(row) {
            cells.entry(who).or_default().push(sampled);
        }
    }

    /// Ours beside each of the others, in every figure of every row.
    #[must_use]
    pub fn ratios(&self) -> Vec<Ratio> {
        let mut all: Vec<Ratio> = Vec::new();
        for (row, cells) in &self.rows {
            let ours = row.who.iter().filter(|w| w.is_ours());
            for (ours, beside) in
                ours.flat_map(|o| row.who.iter().filter(|w| !w.is_ours()).map(move |b| (*o, *b)))
            {
                let of = |w: Who| cells.get(&w).map(Vec::as_slice).unwrap_or_default();
                all.extend(
                    row.figures
                        .iter()
                        .enumerate()
                        .filter_map(|(i, f)| ratio(row, *f, (ours, of(ours)), (beside, of(beside)), i)),
                );
            }
        }
        for r in &mut all {
            r.load_bound &= !self.rows.iter().any(|(row, cells)| row.name() == r.row && gave_more(cells, r));
        }
        all
    }

    /// Every goal that could be looked at.
    #[must_use]
    pub fn goals(&self) -> Vec<Stand> {
        let ratios = self.ratios();
        let mut all = Vec::new();
        for (row, cells) in &self.rows {
            for (i, f) in row.figures.iter().enumerate() {
                let Some(c) = cells.get(&Who::Netreeve).and_then(|s| cell(s, i)) else { continue };
                let of = |w: Who| cells.get(&w).and_then(|s| cell(s, i)).map(|c| c.value.mid);
                let name = [row.name(), f.name.to_owned()].join(if f.name.is_empty() { "" } else { ": " });
                for goal in f.goals {
                    all.extend(match *goal {
                        Goal::Times(who, n) => ratios
                            .iter()
                            .find(|r| {
                                r.row == row.name()
                                    && r.figure == *f
                                    && (r.ours, r.beside) == (Who::Netreeve, who)
                            })
                            .map(|r| Stand {
                                what: format!("{name}: {n} × {}", who.name()),
                                is: format!("{:.2} ({:.2} to {:.2})", r.times.mid, r.times.low, r.times.high),
                                met: r.times.mid >= n,
                                undecided: match r {
                                    r if r.times.mid >= n => None,
                                    r if r.load_bound => Some("the load is the limit"),
                                    r if r.times.high >= n => Some("within the spread"),
                                    _ => None,
                                },
                            }),
                        Goal::Above(who, n) => of(who).map(|base| Stand {
                            what: format!("{name}: at most {n} {} above {}", f.unit, who.name()),
                            is: format!("{:+.1} {}", c.value.mid - base, f.unit),
                            met: c.value.mid - base <= n,
                            undecided: None,
                        }),
                        Goal::AtLeast(n) => Some(Stand {
                            what: format!("{name}: at least {n} {}", f.unit),
                            is: format!("{:.2} {}", c.value.mid, f.unit),
                            met: c.value.mid >= n,
                            undecided: None,
                        }),
                        Goal::AtMost(n) => Some(Stand {
                            what: format!("{name}: at most {n} {}", f.unit),
                            is: format!("{:.2} {}", c.value.mid, f.unit),
                            met: c.value.mid <= n,
                            undecided: None,
                        }),
                    });
                }
            }
        }
        all
    }
}

/// Somebody got clearly more out of the same load, so that it was not the limit: others who serve the same guest.
fn gave_more(cells: &BTreeMap<Who, Vec<Sampled>>, r: &Ratio) -> bool {
    let same = [Who::Dpdk, Who::Open, Who::Busy, Who::Netreeve];
    let most = same.iter().filter_map(|w| cell(cells.get(w)?, 0)).map(|c| c.value.mid).fold(0.0, f64::max);
    most > 1.1 * r.values.0
}

fn ratio(
    row: &Row,
    figure: Figure,
    (ours, our): (Who, &[Sampled]),
    (beside, their): (Who, &[Sampled]),
    i: usize,
) -> Option<Ratio> {
    let better = |a: f64, b: f64| if figure.more { a / b } else { b / a };
    let rounds: Vec<f64> = of_figure(our, i)
        .into_iter()
        .zip(of_figure(their, i))
        .filter_map(|(a, b)| Some(better(a?.value, b?.value)))
        .filter(|r| r.is_finite())
        .collect();
    let (a, b) = (cell(our, i)?, cell(their, i)?);
    let cpu = (a.ns_frame.zip(b.ns_frame)).or(a.s_gib.zip(b.s_gib)).map(|(a, b)| b / a);
    let goal = figure.goals.iter().find_map(|g| match g {
        Goal::Times(who, n) if *who == beside => Some(*n),
        _ => None,
    });
    Some(Ratio {
        row: row.name(),
        figure,
        ours,
        beside,
        values: (a.value.mid, b.value.mid),
        times: spread(&rounds)?,
        cpu,
        load_bound: a.load_bound,
        goal,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(v: &[f64]) -> Vec<Sampled> {
        v.iter().map(|&value| Sampled::Values(vec![Value { value, ..Value::default() }])).collect()
    }

    #[test]
    fn medians() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median([]).is_nan());
        assert_eq!(spread(&[3.0, 1.0]), Some(Spread { mid: 2.0, low: 1.0, high: 3.0 }));
        assert_eq!(spread(&[]), None);
    }

    #[test]
    fn ratios_are_taken_round_by_round_and_more_than_one_is_better() {
        const LESS: Figure = Figure { name: "", unit: "µs", more: false, goals: &[] };
        let row = Row::all().remove(0);
        let mut theirs = values(&[2.0, 8.0]);
        theirs.push(Sampled::Failed);
        let ours = values(&[1.0, 2.0, 9.0]);
        let r = ratio(&row, LESS, (Who::Netreeve, &ours), (Who::Dpdk, &theirs), 0).unwrap();
        assert_eq!(r.times, Spread { mid: 3.0, low: 2.0, high: 4.0 });
        let more = Figure { more: true, ..LESS };
        let r = ratio(&row, more, (Who::Netreeve, &ours), (Who::Dpdk, &theirs), 0).unwrap();
        assert_eq!(r.times.mid, 0.375);
        let none = [Sampled::Skipped(String::new())];
        assert!(ratio(&row, more, (Who::Netreeve, &ours), (Who::Dpdk, &none), 0).is_none());
    }

    #[test]
    fn a_load_that_gave_another_more_was_not_the_limit() {
        let mut figures = Figures::new(&Row::all()[..1]);
        let bound = |value| Sampled::Values(vec![Value { value, load_bound: true, ..Value::default() }]);
        figures.add(0, Who::Netreeve, bound(1.0));
        figures.add(0, Who::Dpdk, bound(1.05));
        assert!(figures.ratios()[0].load_bound);
        figures.add(0, Who::Busy, bound(2.0));
        let ratios = figures.ratios();
        let of = |ours| ratios.iter().find(|r| r.ours == ours).unwrap().load_bound;
        assert_eq!((of(Who::Netreeve), of(Who::Busy)), (false, true));
    }

    #[test]
    fn goals_are_judged_and_a_load_that_is_the_limit_decides_nothing() {
        let row = Row::all().remove(0);
        let wanted = row.figures[0].goals.iter().find_map(|g| match g {
            Goal::Times(Who::Dpdk, n) => Some(*n),
            _ => None,
        });
        let mut figures = Figures::new(std::slice::from_ref(&row));
        figures.add(0, Who::Dpdk, values(&[1.0]).remove(0));
        let slow = Value { value: wanted.unwrap() * 0.9, load_bound: true, ..Value::default() };
        figures.add(0, Who::Netreeve, Sampled::Values(vec![slow]));
        let g = figures.goals();
        assert_eq!((g.len(), g[0].met, g[0].undecided), (1, false, Some("the load is the limit")));
        figures.add(0, Who::Dpdk, values(&[1.0]).remove(0));
        figures.add(0, Who::Netreeve, values(&[wanted.unwrap() * 0.8]).remove(0));
        assert_eq!(figures.goals()[0].undecided, None, "all rounds are below");
        figures.add(0, Who::Dpdk, values(&[1.0]).remove(0));
        figures.add(0, Who::Netreeve, values(&[wanted.unwrap()]).remove(0));
        assert_eq!(figures.goals()[0].undecided, Some("within the spread"));
    }
}
