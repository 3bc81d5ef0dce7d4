//! How much may be held, and by whom: quarantine must not take the room that all other mail needs, and nobody may take all
//! of quarantine.

use serde::{Deserialize, Serialize};

/// How much may be held in all: `quarantine.max_bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capacity {
    /// So many octets.
    Octets(u64),
    /// So many hundredths of the file system.
    Percent(u8),
}

impl Default for Capacity {
    fn default() -> Self {
        Self::Percent(50)
    }
}

/// What is held, as octets of content and of everything that is known of it, against what may be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// So many are held.
    pub octets: u64,
    /// So many may be: the [`Capacity`], or what the disk still has room for if that is less.
    pub limit: u64,
    /// Who holds most.
    pub largest: Option<Holder>,
}

/// Whose mail is held: a client network or a sender domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// `client 192.0.2.7`, `sender example.com`.
    pub name: String,
    /// Octets of its mail.
    pub octets: u64,
}

impl Held {
    /// Nobody may hold more than this many times what is free: one alone two thirds, and the last third stays for others,
    /// of whom nobody can take all either.
    const SHARE: u64 = 2;

    /// Why `more` octets may not be held of somebody who holds `own` already; none if they may. Who holds nothing is
    /// refused only what does not fit at all.
    pub fn refuses(&self, more: u64, own: &Holder) -> Option<String> {
        let after = self.octets.saturating_add(more);
        let (held, limit) = (self.octets, self.limit);
        if after > limit {
            return Some(format!(
                "{held} of {limit} octets are held, and {more} more would be too many (quarantine.max_bytes)"
            ));
        }
        let share = Self::SHARE.saturating_mul(limit - after);
        let is_greedy = own.octets > 0 && own.octets.saturating_add(more) > share;
        is_greedy.then(|| {
            format!(
                "{} octets of {} are held, and {more} more would be too many of {} that are free (quarantine.max_bytes)",
                own.octets,
                own.name,
                limit - held
            )
        })
    }

    /// How near it is to the moment from which on something is refused: 1 is there.
    pub fn part(&self) -> f64 {
        let of = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
        let free = self.limit.saturating_sub(self.octets);
        let largest = self.largest.as_ref().map_or(0, |holder| holder.octets);
        of(self.octets, self.limit).max(of(largest, Self::SHARE.saturating_mul(free)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(octets: u64) -> Held {
        Held {
            octets,
            limit: 900,
            largest: None,
        }
    }

    fn holder(octets: u64) -> Holder {
        Holder {
            name: "sender a.test".to_owned(),
            octets,
        }
    }

    /// One alone gets two thirds and no more; who comes after it finds room, whoever it is.
    #[test]
    fn nobody_holds_everything() {
        assert_eq!(held(590).refuses(10, &holder(590)), None);
        let refused = held(600).refuses(10, &holder(600)).expect("too much");
        assert!(refused.contains("sender a.test"), "{refused}");
        assert_eq!(held(600).refuses(10, &holder(0)), None);
        assert_eq!(held(600).refuses(100, &holder(100)), None);
        assert_eq!(held(890).refuses(10, &holder(0)), None);
        let full = held(891).refuses(10, &holder(0)).expect("full");
        assert!(full.contains("891 of 900"), "{full}");
        assert_eq!(held(0).refuses(900, &holder(0)), None, "one that fits");
    }

    /// What is told before it is full is told in time for one party alone too, which is stopped earlier.
    #[test]
    fn what_is_near_its_end_is_known_before() {
        assert!(held(700).part() < 0.8);
        assert!(held(730).part() > 0.8);
        let largest = |octets| Held {
            largest: Some(holder(octets)),
            ..held(octets)
        };
        assert!(largest(540).part() < 0.8);
        assert!(largest(560).part() > 0.8);
        assert!(largest(601).part() > 1.0);
        assert!(Held::default().part() == 0.0);
        assert!(
            Held {
                octets: 1,
                ..Held::default()
            }
            .part()
                >= 1.0
        );
    }
}
