//! The limits of quarantine: quarantine must not take the room that all other mail needs, and one client or sender must not
//! take all of quarantine.

use serde::{Deserialize, Serialize};

/// The limit for quarantine as a whole: `quarantine.max_bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capacity {
    /// A number of octets.
    Octets(u64),
    /// A part of the file system, in percent.
    Percent(u8),
}

impl Default for Capacity {
    fn default() -> Self {
        Self::Percent(50)
    }
}

/// The use of quarantine, in octets of content and metadata, and its limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Octets in use.
    pub octets: u64,
    /// The limit: the [`Capacity`], or the room that the disk still has if that is less.
    pub limit: u64,
    /// The client network or sender domain with the most octets in quarantine.
    pub largest: Option<Holder>,
}

/// A client network or sender domain with mail in quarantine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// `client 192.0.2.7`, `sender example.com`.
    pub name: String,
    /// Octets of its mail in quarantine.
    pub octets: u64,
}

impl Held {
    /// One holder may have at most this many times the free room. With 2, one holder alone gets two thirds. The last third
    /// stays for others, and none of them can take all of it either.
    const HOLDER_OCTETS_PER_FREE_OCTET: u64 = 2;

    /// The reason why `more` octets of the holder `own` may not be added; `None` if they may. A holder without mail in
    /// quarantine is refused only mail that does not fit at all.
    pub fn refuses(&self, more: u64, own: &Holder) -> Option<String> {
        let after = self.octets.saturating_add(more);
        let (held, limit) = (self.octets, self.limit);
        if after > limit {
            return Some(format!(
                "quarantine has {held} of {limit} octets, so {more} more do not fit \
                 (delete or release mail, or raise quarantine.max_bytes)"
            ));
        }
        let share = Self::HOLDER_OCTETS_PER_FREE_OCTET.saturating_mul(limit - after);
        let is_greedy = own.octets > 0 && own.octets.saturating_add(more) > share;
        is_greedy.then(|| {
            format!(
                "quarantine has {} octets of {}, so {more} more are too many while {} are free \
                 (delete or release mail, or raise quarantine.max_bytes)",
                own.octets,
                own.name,
                limit - held
            )
        })
    }

    /// How near quarantine is to its first refusal. From 1 on, mail is refused.
    pub fn part(&self) -> f64 {
        let of = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
        let free = self.limit.saturating_sub(self.octets);
        let largest = self.largest.as_ref().map_or(0, |holder| holder.octets);
        of(self.octets, self.limit).max(of(
            largest,
            Self::HOLDER_OCTETS_PER_FREE_OCTET.saturating_mul(free),
        ))
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

    /// One holder alone gets two thirds and no more. Any later holder finds room.
    #[test]
    fn one_holder_cannot_take_all_of_quarantine() {
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

    /// The warning before the first refusal also comes in time if one holder alone has all the mail: that holder is refused
    /// earlier.
    #[test]
    fn the_part_in_use_rises_before_the_first_refusal() {
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
