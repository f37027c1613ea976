//! Kinds that a program brings along: whoever writes one implements [`Sink`] and says how its block is read.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use crate::registry::{Kind, Problem, SinkPlan, Target};
use crate::sink::{LaneId, OnDelete, Sink};

/// A kind made of a sink: the one that is read of the block is copied for each lane.
pub(crate) struct OwnKind<R> {
    pub(crate) name: &'static str,
    pub(crate) plan: SinkPlan,
    pub(crate) read: R,
}

impl<S, R> Kind for OwnKind<R>
where
    S: Sink + Clone + Sync + 'static,
    R: Fn(&Value) -> Result<S, Vec<Problem>> + Send + Sync,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn validate(&self, block: &Value, _mapped: bool) -> Result<Arc<dyn Target>, Vec<Problem>> {
        Ok(Arc::new(OwnTarget { plan: self.plan.clone(), sink: (self.read)(block)? }))
    }
}

struct OwnTarget<S> {
    plan: SinkPlan,
    sink: S,
}

/// Shows nothing of the sink, which may hold secrets.
impl<S> fmt::Debug for OwnTarget<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnTarget").field("plan", &self.plan).finish_non_exhaustive()
    }
}

impl<S: Sink + Clone + Sync + 'static> Target for OwnTarget<S> {
    fn plan(&self) -> &SinkPlan {
        &self.plan
    }

    fn build(&self, _lane: LaneId, _on_delete: OnDelete) -> Box<dyn Sink> {
        Box::new(self.sink.clone())
    }
}
