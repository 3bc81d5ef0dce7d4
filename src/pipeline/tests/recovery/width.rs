//! How many messages one recovery scans at once.

use super::*;
use crate::pipeline::recovery::width;

/// `recovery_per_slot` and `recovery_max`: twice as many for each slot are twice as many messages at once, up to the maximum; two at
/// least. A change is in force at the next round.
#[tokio::test(start_paused = true)]
async fn a_recovery_is_as_wide_as_its_settings_say() {
    let cause = Cause::Engine("sound".to_owned());
    let mut widths = Vec::new();
    for (per_slot, max) in [(1, 32), (2, 32), (4, 32), (16, 32), (16, 100), (1, 3)] {
        let mut settings = engine("sound", MINUTE, sound).await;
        settings.slots = 6;
        settings.guard.recovery_per_slot = per_slot;
        settings.guard.recovery_max = max;
        let generation = generation(vec![settings], Budget::default());
        assert_eq!(width(&generation, &cause, false), 1, "an interceptor holds");
        widths.push(width(&generation, &cause, true));
    }
    assert_eq!(widths, [6, 12, 24, 32, 96, 3]);
    let removed = generation(Vec::new(), Budget::default());
    assert_eq!(width(&removed, &cause, true), 2);
}
