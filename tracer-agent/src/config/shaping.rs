//! What decides about spans (sampling, sdk) and names them (routes), from layers to validated settings.

use super::keys::{ROUTE_SERVICES, SAMPLING_RULES, SDK_SERVICES};
use super::layers::{Item, Layers};
use super::resolve::accept;
use super::{ConfigError, keys, parse};
use crate::trace::routes::{self, ServicePattern};
use crate::trace::sampling::{self, Rule, Standard};
use crate::trace::sdk::{self, ServiceMode};

/// Milliseconds from which on a span is slow.
const SLOW_MS: std::ops::RangeInclusive<u32> = 1..=3_600_000;

impl Layers {
    pub(super) fn sampling(&self) -> Result<sampling::Settings, ConfigError> {
        let name = self.one(keys::SAMPLER, parse::one_of(&sampling::NAMES))?;
        // The argument of a sampler that has none is ignored, as specified.
        let ratio = if name.ends_with("traceidratio") {
            self.optional(keys::SAMPLER_RATIO, parse::ratio)?
        } else {
            None
        };
        Ok(sampling::Settings {
            standard: Standard::named(&name, ratio.unwrap_or(1.0)).unwrap_or_default(),
            keep_errors: self.one(keys::KEEP_ERRORS, parse::boolean)?,
            keep_slower_than: self.optional(keys::KEEP_SLOWER_THAN, parse::millis(SLOW_MS))?,
            spans_per_second: self.optional(keys::SPANS_PER_SECOND, parse::rate)?,
            rules: self.each(SAMPLING_RULES, sampling_rule)?,
            decision_wait: self.one(keys::DECISION_WAIT, parse::millis(100..=60_000))?,
            max_buffered: self.one(keys::MAX_BUFFERED, parse::number(1..=1_000_000))? as usize,
        })
    }

    pub(super) fn routes(&self) -> Result<routes::Settings, ConfigError> {
        let own = self.each(ROUTE_SERVICES, service_patterns)?;
        let all = self.many(keys::ROUTE_PATTERNS, parse::route)?;
        let all = all.into_iter().map(|pattern| ServicePattern {
            service: None,
            pattern,
        });
        Ok(routes::Settings {
            patterns: own.into_iter().flatten().chain(all).collect(),
            learn: self.one(keys::ROUTE_LEARN, parse::boolean)?,
            max_per_service: self.one(keys::ROUTE_MAX, parse::number(1..=10_000))? as usize,
        })
    }

    pub(super) fn sdk(&self) -> Result<sdk::Settings, ConfigError> {
        Ok(sdk::Settings {
            mode: self.one(keys::SDK_MODE, sdk_mode)?,
            services: self.each(SDK_SERVICES, sdk_service)?,
            wait: self.one(keys::SDK_WAIT, parse::millis(100..=60_000))?,
        })
    }

    fn each<T>(
        &self,
        list: &str,
        parse: impl Fn(&Item) -> Result<T, ConfigError>,
    ) -> Result<Vec<T>, ConfigError> {
        let items = self.items.get(list).map_or(&[][..], Vec::as_slice);
        items.iter().map(parse).collect()
    }
}

fn sdk_mode(text: &str) -> Result<sdk::Mode, String> {
    let word = parse::one_of(&sdk::MODES)(text)?;
    Ok(sdk::Mode::named(&word).unwrap_or_default())
}

fn sdk_service(item: &Item) -> Result<ServiceMode, ConfigError> {
    let list = SDK_SERVICES;
    let service = field(item, list, "service", parse::glob)?;
    let mode = field(item, list, "mode", sdk_mode)?;
    let (Some(service), Some(mode)) = (service, mode) else {
        let problem = "an entry needs a `service`, a glob over service names, and a `mode`";
        return Err(refused(item, list, problem));
    };
    Ok(ServiceMode {
        service: service.into(),
        mode,
    })
}

fn sampling_rule(item: &Item) -> Result<Rule, ConfigError> {
    let list = SAMPLING_RULES;
    let rule = Rule {
        service: field(item, list, "service", parse::glob)?.map(Into::into),
        route: field(item, list, "route", parse::route)?,
        keep_slower_than: field(item, list, "keep_slower_than_ms", parse::millis(SLOW_MS))?,
        spans_per_second: field(item, list, "spans_per_second", parse::rate)?,
    };
    if rule.spans_per_second.is_some() && rule.route.is_some() {
        let problem = "`spans_per_second` is for services; it cannot stand beside a `route`";
        return Err(refused(item, list, problem));
    }
    if rule.spans_per_second.is_none() && rule.keep_slower_than.is_none() {
        let problem = "the rule says nothing; give it `keep_slower_than_ms` or `spans_per_second`";
        return Err(refused(item, list, problem));
    }
    Ok(rule)
}

fn service_patterns(item: &Item) -> Result<Vec<ServicePattern>, ConfigError> {
    let list = ROUTE_SERVICES;
    let Some(service) = field(item, list, "service", parse::glob)? else {
        let problem = "the entry has no `service`; give a glob over service names";
        return Err(refused(item, list, problem));
    };
    let values = item.values("patterns");
    if values.is_empty() {
        let problem = "the entry has no `patterns`; give a list of paths";
        return Err(refused(item, list, problem));
    }
    let name = format!("{list}.patterns");
    let patterns = values.iter().map(|value| {
        Ok(ServicePattern {
            service: Some(service.as_str().into()),
            pattern: accept(&name, value, parse::route)?,
        })
    });
    patterns.collect()
}

fn field<T>(
    item: &Item,
    list: &str,
    name: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<T>, ConfigError> {
    let value = item.values(name).first();
    value
        .map(|value| accept(&format!("{list}.{name}"), value, parse))
        .transpose()
}

fn refused(item: &Item, list: &str, problem: &str) -> ConfigError {
    ConfigError::Value {
        place: item.place.naming(list),
        problem: problem.to_owned(),
    }
}
