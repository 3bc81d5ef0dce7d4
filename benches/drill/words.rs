//! Text that nobody wrote: words, names, sentences, in the frequencies of a language.

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

const WORDS: usize = 4000;

/// A language of its own.
pub struct Words {
    words: Vec<String>,
}

impl Words {
    pub fn new() -> Self {
        const ONSETS: [&str; 16] = [
            "b", "br", "c", "d", "f", "g", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v",
        ];
        const VOWELS: [&str; 8] = ["a", "e", "i", "o", "u", "ea", "ou", "ai"];
        const CODAS: [&str; 8] = ["", "", "n", "r", "s", "t", "l", "nd"];
        // The language is the same in every run.
        let mut rng = SmallRng::seed_from_u64(0x5ea_5a17);
        let mut words = Vec::with_capacity(WORDS);
        while words.len() < WORDS {
            let mut word = String::new();
            for _ in 0..rng.random_range(1..4) {
                word += ONSETS[rng.random_range(0..ONSETS.len())];
                word += VOWELS[rng.random_range(0..VOWELS.len())];
                word += CODAS[rng.random_range(0..CODAS.len())];
            }
            words.push(word);
        }
        Self { words }
    }

    /// A word; the early ones of the language are the common ones.
    pub fn word(&self, rng: &mut SmallRng) -> &str {
        let draw: f64 = rng.random();
        // Truncated Zipf: every octave of ranks is equally likely.
        let rank = (self.words.len() as f64).powf(draw) - 1.0;
        &self.words[(rank as usize).min(self.words.len() - 1)]
    }

    /// Somebody's name.
    pub fn name(&self, rng: &mut SmallRng) -> String {
        let at = rng.random_range(self.words.len() / 2..self.words.len());
        let mut name = self.words[at].clone();
        name[..1].make_ascii_uppercase();
        name
    }

    pub fn sentence(&self, rng: &mut SmallRng) -> String {
        let mut sentence = String::new();
        for at in 0..rng.random_range(5..18) {
            if at > 0 {
                sentence.push(' ');
            }
            if rng.random_ratio(1, 25) {
                sentence += &rng.random_range(1..5000).to_string();
            } else {
                sentence += self.word(rng);
            }
        }
        sentence[..1].make_ascii_uppercase();
        sentence.push('.');
        sentence
    }

    /// Lines of sentences, `octets` or a little more.
    pub fn text(&self, rng: &mut SmallRng, octets: usize) -> String {
        let mut text = String::with_capacity(octets + 256);
        while text.len() < octets {
            for _ in 0..rng.random_range(2..6) {
                text += &self.sentence(rng);
                text += "\r\n";
            }
            text += "\r\n";
        }
        text
    }
}
