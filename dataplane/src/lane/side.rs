//! The two ends of a lane.
#![forbid(unsafe_code)]

/// One of the two ends of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Host side.
    Netdev,
    /// VM side.
    Device,
}

impl Side {
    /// Both ends.
    pub const BOTH: [Self; 2] = [Self::Netdev, Self::Device];

    /// The other end.
    #[must_use]
    pub fn peer(self) -> Self {
        match self {
            Self::Netdev => Self::Device,
            Self::Device => Self::Netdev,
        }
    }
}
