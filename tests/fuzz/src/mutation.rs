//! Changes of bytes, from a seed.

/// Largest input that mutations make.
const INPUT_MAX: usize = 1 << 20;

/// Pseudo-random numbers: splitmix64 (Steele, Lea, Flood 2014).
#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    /// The numbers of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number of 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`; 0 when that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { (self.draw() % end as u64) as usize }
    }

    /// One of `choices`.
    ///
    /// # Panics
    /// There are none.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }
}

/// Mutates `bytes` once to a few times; `other` is another input, to splice with.
pub(crate) fn mutate(bytes: &mut Vec<u8>, other: &[u8], chance: &mut Chance) {
    for _ in 0..1 + chance.below(4) {
        once(bytes, other, chance);
        bytes.truncate(INPUT_MAX);
    }
}

fn once(bytes: &mut Vec<u8>, other: &[u8], chance: &mut Chance) {
    let at = chance.below(bytes.len());
    match chance.below(12) {
        // A flipped bit, another byte.
        0 | 1 if !bytes.is_empty() => bytes[at] ^= 1 << chance.below(8),
        2 if !bytes.is_empty() => bytes[at] = chance.draw() as u8,
        // Cut at the end, cut out in the middle, zeroed.
        3 => bytes.truncate(at),
        4 => drop(bytes.drain(at..at + range(bytes.len() - at, chance))),
        5 => {
            let end = at + range(bytes.len() - at, chance);
            bytes[at..end].fill(0);
        }
        // A part twice, or very often: lengths and depths grow.
        6 => {
            let part = bytes[at..at + range(bytes.len() - at, chance)].to_vec();
            let times = if chance.below(8) == 0 { 1 + chance.below(2000) } else { 1 };
            let times = times.min(INPUT_MAX / part.len().max(1));
            bytes.splice(at..at, part.repeat(times));
        }
        // A number where one may stand.
        7..=9 => {
            let width = *chance.pick(&[1, 2, 4, 4, 8, 8]);
            let at = if chance.below(2) == 0 { at } else { at / width * width };
            let number = number(bytes.len(), at, chance);
            let all = if chance.below(2) == 0 { number.to_le_bytes() } else { number.to_be_bytes() };
            let part = if all[7] == (number >> 56) as u8 { &all[..width] } else { &all[8 - width..] };
            for (to, from) in bytes.iter_mut().skip(at).zip(part) {
                *to = *from;
            }
        }
        // A part of another input, in between or in place of the end.
        10 if !other.is_empty() => {
            let from = chance.below(other.len());
            let part = &other[from..from + range(other.len() - from, chance)];
            bytes.splice(at..at, part.iter().copied());
        }
        _ if !other.is_empty() => {
            bytes.truncate(at);
            bytes.extend_from_slice(&other[chance.below(other.len())..]);
        }
        _ => bytes.push(chance.draw() as u8),
    }
}

/// Length of a part of `len` bytes: usually short.
fn range(len: usize, chance: &mut Chance) -> usize {
    let most = if chance.below(4) == 0 { len } else { len.min(16) };
    chance.below(most + 1)
}

/// A number that limits are about.
fn number(len: usize, at: usize, chance: &mut Chance) -> u64 {
    let left = (len - at.min(len)) as u64;
    let base = *chance.pick(&[
        0,
        1,
        0x7f,
        0x80,
        0xff,
        0x7fff,
        0xffff,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        i64::MAX as u64,
        1 << 63,
        u64::MAX,
        1 << 28,
        len as u64,
        left,
    ]);
    base.wrapping_add(*chance.pick(&[0, 0, 1, u64::MAX, 8, 8_u64.wrapping_neg()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_mutations_and_no_input_is_too_small_or_grows_without_end() {
        for seed in 0..2000 {
            let run = |seed| {
                let mut chance = Chance::new(seed);
                let mut bytes = vec![7; seed as usize % 5];
                for _ in 0..20 {
                    mutate(&mut bytes, &[1, 2, 3][..seed as usize % 4], &mut chance);
                }
                bytes
            };
            assert_eq!(run(seed), run(seed));
            assert!(run(seed).len() <= INPUT_MAX);
        }
    }
}
