//! HTTP/JSON: access to the log for any HTTP client.
//!
//! `ROUTES` is the only list of endpoints: the router is built from it, and a test compares `openapi.json` with it.
//! `json` and `query` convert requests to requests of the broker (pure). `problem` is the only table of errors.
//! `append`, `read` and `topics` are the handlers.

mod accept;
mod append;
mod body;
#[cfg(test)]
mod http_fuzz;
mod json;
mod openapi;
pub mod problem;
mod query;
mod read;
mod topics;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{RawPathParams, Request, State};
use axum::routing::{MethodFilter, on};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method, Response, StatusCode, Uri};
use serde::Serialize;

use self::problem::Problem;
use super::context::{Context, DEFAULT_TOPIC};
use crate::model::{ApiError, Reason, TopicPartition};
use crate::security::Caller;
use crate::telemetry::{ApiOperation, Listener};

/// What an endpoint does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endpoint {
    Root,
    Append,
    Read,
    Offsets,
    ListTopics,
    CreateTopic,
    DescribeTopic,
    AlterTopic,
    DeleteTopic,
    Servers,
    InitProducer,
    OpenApi,
}

const RECORDS: &str = "/v1/topics/{topic}/partitions/{partition}/records";

/// Method, path and purpose of every endpoint.
const ROUTES: &[(&str, &str, Endpoint)] = &[
    ("get", "/", Endpoint::Root),
    ("post", "/", Endpoint::Append),
    ("post", RECORDS, Endpoint::Append),
    ("get", RECORDS, Endpoint::Read),
    ("get", "/v1/topics/{topic}/partitions/{partition}/offsets", Endpoint::Offsets),
    ("get", "/v1/topics", Endpoint::ListTopics),
    ("post", "/v1/topics", Endpoint::CreateTopic),
    ("get", "/v1/topics/{topic}", Endpoint::DescribeTopic),
    ("patch", "/v1/topics/{topic}", Endpoint::AlterTopic),
    ("delete", "/v1/topics/{topic}", Endpoint::DeleteTopic),
    ("get", "/v1/servers", Endpoint::Servers),
    ("post", "/v1/producers", Endpoint::InitProducer),
    ("get", "/openapi.json", Endpoint::OpenApi),
];

impl Endpoint {
    fn operation(self) -> ApiOperation {
        match self {
            Endpoint::Append => ApiOperation::Produce,
            Endpoint::Read | Endpoint::Root => ApiOperation::Consume,
            Endpoint::Offsets => ApiOperation::Offsets,
            Endpoint::ListTopics => ApiOperation::ListTopics,
            Endpoint::CreateTopic => ApiOperation::CreateTopic,
            Endpoint::DescribeTopic => ApiOperation::DescribeTopic,
            Endpoint::AlterTopic => ApiOperation::AlterTopic,
            Endpoint::DeleteTopic => ApiOperation::DeleteTopic,
            Endpoint::Servers => ApiOperation::Servers,
            Endpoint::InitProducer => ApiOperation::InitProducer,
            Endpoint::OpenApi => ApiOperation::Other,
        }
    }
}

/// A request as the handlers receive it.
struct Call {
    topic: Option<String>,
    partition: Option<String>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
    /// The caller.
    caller: Caller,
}

impl Call {
    /// Returns the partition in the path; partition 0 of the default topic when the path has none.
    fn target(&self) -> Result<TopicPartition, ApiError> {
        let topic = self.topic.clone().unwrap_or_else(|| DEFAULT_TOPIC.to_owned());
        let partition = match &self.partition {
            None => 0,
            Some(text) => text
                .parse()
                .ok()
                .filter(|partition| *partition >= 0)
                .ok_or_else(|| ApiError::invalid("partition", text, "must be a number from 0 to 2147483647"))?,
        };
        Ok(TopicPartition { topic, partition })
    }

    fn topic(&self) -> &str {
        self.topic.as_deref().unwrap_or(DEFAULT_TOPIC)
    }
}

/// Routes of the HTTP side of the data port.
pub(crate) fn router(context: &Context) -> Router {
    let mut router = Router::new();
    for &(method, path, endpoint) in ROUTES {
        let filter = match method {
            "post" => MethodFilter::POST,
            "patch" => MethodFilter::PATCH,
            "delete" => MethodFilter::DELETE,
            _ => MethodFilter::GET,
        };
        let handler = move |State(context): State<Context>,
                            params: Result<RawPathParams, RawPathParamsRejection>,
                            request: Request| answer(context, endpoint, params, request);
        router = router.route(path, on(filter, handler));
    }
    router.method_not_allowed_fallback(wrong_method).fallback(unknown_path).with_state(context.clone())
}

async fn answer(
    context: Context,
    endpoint: Endpoint,
    params: Result<RawPathParams, RawPathParamsRejection>,
    request: Request,
) -> Response<Body> {
    let work = async {
        let params = params.map_err(|rejection| ApiError::invalid("path", "undecodable", &rejection.body_text()))?;
        let value = |name| params.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_owned());
        let (topic, partition) = (value("topic"), value("partition"));
        let (mut parts, body) = request.into_parts();
        // A request without a caller must fail: never treat it as a request of a known caller.
        let unknown = || ApiError::new(Reason::Internal, "request: has no caller");
        let caller = parts.extensions.remove::<Caller>().ok_or_else(unknown)?;
        let call = Call { topic, partition, uri: parts.uri, headers: parts.headers, body, caller };
        match endpoint {
            Endpoint::Root if call.uri.query().is_none_or(str::is_empty) => read::service(&context, &call),
            Endpoint::Root => read::one(&context, call).await,
            Endpoint::Append => append::append(&context, call).await,
            Endpoint::Read => read::many(&context, call).await,
            Endpoint::Offsets => read::offsets(&context, call).await,
            Endpoint::ListTopics => topics::list(&context, call).await,
            Endpoint::CreateTopic => topics::create(&context, call).await,
            Endpoint::DescribeTopic => topics::describe(&context, call).await,
            Endpoint::AlterTopic => topics::alter(&context, call).await,
            Endpoint::DeleteTopic => topics::delete(&context, call).await,
            Endpoint::Servers => topics::servers(&context, call).await,
            Endpoint::InitProducer => topics::init_producer(&context, call).await,
            Endpoint::OpenApi => Ok(openapi::response()),
        }
    };
    context
        .observe(Listener::Http, endpoint.operation(), work)
        .await
        .unwrap_or_else(|problem: Problem| problem.into_response())
}

async fn unknown_path(State(context): State<Context>, uri: Uri) -> Response<Body> {
    let message = format!("path: {}: no such endpoint; see /openapi.json", uri.path());
    refuse(&context, Problem::from(ApiError::new(Reason::NoSuchEndpoint, message))).await
}

async fn wrong_method(State(context): State<Context>, method: Method, uri: Uri) -> Response<Body> {
    let message = format!("method: {method}: not supported by {}; see /openapi.json", uri.path());
    let error = ApiError::new(Reason::NoSuchEndpoint, message);
    refuse(&context, Problem::from(error).with_status(StatusCode::METHOD_NOT_ALLOWED)).await
}

async fn refuse(context: &Context, problem: Problem) -> Response<Body> {
    let result =
        context.observe(Listener::Http, ApiOperation::Other, std::future::ready(Err::<Response<Body>, _>(problem)));
    result.await.unwrap_or_else(Problem::into_response)
}

/// Returns a response with a JSON document.
fn document(status: StatusCode, document: &impl Serialize) -> Result<Response<Body>, Problem> {
    let bytes = serde_json::to_vec(document)
        .map_err(|error| ApiError::new(Reason::Internal, format!("response: cannot be written as JSON: {error}")))?;
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, accept::JSON_VALUE);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(topic: Option<&str>, partition: Option<&str>) -> Call {
        Call {
            topic: topic.map(str::to_owned),
            partition: partition.map(str::to_owned),
            uri: Uri::from_static("/"),
            headers: HeaderMap::new(),
            body: Body::empty(),
            caller: Caller::new(None, std::net::SocketAddr::from(([127, 0, 0, 1], 1))),
        }
    }

    #[test]
    fn a_path_without_partition_means_the_first_of_the_default_topic() {
        assert_eq!(call(None, None).target().unwrap(), TopicPartition { topic: "default".into(), partition: 0 });
        assert_eq!(call(Some("t"), Some("7")).target().unwrap(), TopicPartition { topic: "t".into(), partition: 7 });
    }

    #[test]
    fn a_partition_that_is_no_number_is_refused_by_name() {
        for partition in ["x", "-1", "2147483648", ""] {
            let error = call(Some("t"), Some(partition)).target().unwrap_err();
            assert_eq!(error.reason, Reason::InvalidRequest);
            assert!(error.message.starts_with(&format!("partition: {partition}: must be a number")), "{error}");
        }
    }
}
