//! Values that are read at scrape time: a collector adds them to [`Samples`], which writes them in the text format.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

type Labels<'a> = &'a [(&'static str, String)];

/// The values of one scrape. Names get the prefix `chronicle_`; counters the suffix `_total`.
pub struct Samples {
    families: Vec<SampleFamily>,
}

/// All values of one name.
struct SampleFamily {
    name: &'static str,
    help: &'static str,
    values: Vec<(Vec<(&'static str, String)>, Value)>,
}

#[derive(Clone)]
enum Value {
    Gauge(f64),
    Counter(u64),
    /// A counter that is not a whole number, such as seconds.
    Sum(f64),
    Histogram {
        /// Upper bound (inclusive) and count of each bucket, not cumulative; the last bound is the greatest number.
        buckets: Vec<(f64, u64)>,
        sum: f64,
    },
}

impl Samples {
    /// A value that goes up and down. `name` carries its unit.
    pub fn gauge(&mut self, name: &'static str, help: &'static str, value: f64) {
        self.push(name, help, &[], Value::Gauge(value));
    }

    /// A value that only grows. `name` carries its unit.
    pub fn counter(&mut self, name: &'static str, help: &'static str, value: u64) {
        self.push(name, help, &[], Value::Counter(value));
    }

    /// A sum that only grows, such as seconds. `name` carries its unit.
    pub fn sum(&mut self, name: &'static str, help: &'static str, value: f64) {
        self.push(name, help, &[], Value::Sum(value));
    }

    /// One labelled value of a gauge. Keep the number of label values small.
    pub fn gauge_of(&mut self, name: &'static str, help: &'static str, labels: Labels<'_>, value: f64) {
        self.push(name, help, labels, Value::Gauge(value));
    }

    /// One labelled value of a counter. Keep the number of label values small.
    pub fn counter_of(&mut self, name: &'static str, help: &'static str, labels: Labels<'_>, value: u64) {
        self.push(name, help, labels, Value::Counter(value));
    }

    /// Adds a histogram that the caller has counted: upper bounds (inclusive) of the buckets, their counts and one more
    /// count for values above the last bound, and the sum of all values. `name` carries the unit.
    pub fn histogram(&mut self, name: &'static str, help: &'static str, bounds: &[f64], counts: &[u64], sum: f64) {
        let bounds = bounds.iter().copied().chain([f64::INFINITY]);
        let buckets = bounds.zip(counts.iter().copied()).collect();
        self.push(name, help, &[], Value::Histogram { buckets, sum });
    }

    fn push(&mut self, name: &'static str, help: &'static str, labels: Labels<'_>, value: Value) {
        let sample = (labels.to_vec(), value);
        match self.families.iter_mut().find(|family| family.name == name) {
            Some(family) => family.values.push(sample),
            None => self.families.push(SampleFamily { name, help, values: vec![sample] }),
        }
    }
}

type Collect = Box<dyn Fn(&mut Samples) + Send + Sync>;

/// A function that is called at every scrape.
pub(super) struct FnCollector(pub(super) Collect);

impl fmt::Debug for FnCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FnCollector")
    }
}

impl Collector for FnCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut samples = Samples { families: Vec::new() };
        (self.0)(&mut samples);
        for SampleFamily { name, help, values } in &samples.families {
            let kind = match values.first() {
                Some((_, Value::Counter(_) | Value::Sum(_))) => MetricType::Counter,
                Some((_, Value::Histogram { .. })) => MetricType::Histogram,
                _ => MetricType::Gauge,
            };
            let mut metric = encoder.encode_descriptor(name, &format!("{help}."), None, kind)?;
            match values.as_slice() {
                [(labels, value)] if labels.is_empty() => encode_value(value, metric)?,
                values => {
                    for (labels, value) in values {
                        encode_value(value, metric.encode_family(labels)?)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn encode_value(value: &Value, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
    match value {
        Value::Gauge(value) => ConstGauge::new(*value).encode(encoder),
        Value::Counter(value) => ConstCounter::new(*value).encode(encoder),
        Value::Sum(value) => ConstCounter::new(*value).encode(encoder),
        Value::Histogram { buckets, sum } => {
            let count = buckets.iter().map(|(_, count)| count).sum();
            encoder.encode_histogram::<[(&str, &str); 0]>(*sum, count, buckets, None)
        }
    }
}
