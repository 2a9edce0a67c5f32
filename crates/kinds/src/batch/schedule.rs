//! The text of a cron schedule.

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// What is wrong with a schedule, in the words of upstream's parser.
pub(super) fn check(schedule: &str) -> Result<(), String> {
    let mut text = schedule;
    if text.starts_with("TZ=") || text.starts_with("CRON_TZ=") {
        let Some((_, rest)) = text.split_once(' ') else {
            return Err(format!("provided bad location {text}: unknown time zone"));
        };
        text = rest.trim();
    }
    if let Some(name) = text.strip_prefix('@') {
        return descriptor(name);
    }
    let fields: Vec<_> = text.split_whitespace().collect();
    if fields.len() != 5 {
        return Err(format!(
            "expected exactly 5 fields, found {}: [{}]",
            fields.len(),
            fields.join(" ")
        ));
    }
    for (field, (low, high, names)) in fields.iter().zip([
        (0, 59, &[][..]),
        (0, 23, &[][..]),
        (1, 31, &[][..]),
        (1, 12, &MONTHS[..]),
        (0, 6, &DAYS[..]),
    ]) {
        for part in field.split(',') {
            range(part, low, high, names)?;
        }
    }
    Ok(())
}

fn descriptor(name: &str) -> Result<(), String> {
    match name {
        "yearly" | "annually" | "monthly" | "weekly" | "daily" | "midnight" | "hourly" => Ok(()),
        _ => match name.strip_prefix("every ") {
            Some(every) if is_duration(every) => Ok(()),
            Some(every) => Err(format!(
                "failed to parse duration @every {every}: time: invalid duration {every:?}"
            )),
            None => Err(format!("unrecognized descriptor: @{name}")),
        },
    }
}

fn is_duration(text: &str) -> bool {
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        if digits.len() == rest.len() {
            return false;
        }
        let Some(unit) = ["ns", "us", "ms", "h", "m", "s"]
            .iter()
            .find(|u| digits.starts_with(**u))
        else {
            return false;
        };
        rest = &digits[unit.len()..];
    }
    !text.is_empty()
}

fn range(part: &str, low: u32, high: u32, names: &[&str]) -> Result<(), String> {
    let pieces: Vec<_> = part.split('/').collect();
    if pieces.len() > 2 {
        return Err(format!("too many slashes: {part}"));
    }
    let ends: Vec<_> = pieces[0].split('-').collect();
    let (start, mut end) = if matches!(ends[0], "*" | "?") {
        (low, high)
    } else {
        let start = number(ends[0], low, names)?;
        match ends.len() {
            1 => (start, start),
            2 => (start, number(ends[1], low, names)?),
            _ => return Err(format!("too many hyphens: {part}")),
        }
    };
    if let Some(step) = pieces.get(1) {
        let step: u32 = step.parse().map_err(|_| {
            format!(
                "failed to parse int from {step}: strconv.Atoi: parsing {step:?}: invalid syntax"
            )
        })?;
        if step == 0 {
            return Err(format!("step of range should be a positive number: {part}"));
        }
        if ends.len() == 1 {
            end = high.max(end);
        }
    }
    if start < low {
        return Err(format!(
            "beginning of range ({start}) below minimum ({low}): {part}"
        ));
    }
    if end > high {
        return Err(format!(
            "end of range ({end}) above maximum ({high}): {part}"
        ));
    }
    if start > end {
        return Err(format!(
            "beginning of range ({start}) beyond end of range ({end}): {part}"
        ));
    }
    Ok(())
}

fn number(text: &str, first: u32, names: &[&str]) -> Result<u32, String> {
    let lower = text.to_lowercase();
    if let Some(i) = names.iter().position(|n| *n == lower) {
        return Ok(i as u32 + first);
    }
    text.parse().map_err(|_| {
        format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax")
    })
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn schedules() {
        for good in [
            "* * * * *",
            "*/5 0-3 1,15 jan-mar MON",
            "@hourly",
            "@every 1h30m",
            "TZ=UTC 0 0 * * ?",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        assert_eq!(
            check("* * *"),
            Err("expected exactly 5 fields, found 3: [* * *]".to_owned())
        );
        assert_eq!(
            check("60 * * * *"),
            Err("end of range (60) above maximum (59): 60".to_owned())
        );
        for bad in [
            "",
            "a * * * *",
            "*/0 * * * *",
            "5-1 * * * *",
            "@sometimes",
            "@every 1x",
            "1-2-3 * * * *",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
