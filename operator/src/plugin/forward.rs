//! Connects to ports of pods with port-forwards of the API server: a [`Connector`] like that of TCP, so that TLS and gRPC work unchanged,
//! and certificates are verified against the DNS name of the pod.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use chronicle_client::{BoxedIo, Connector};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, Portforwarder};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use super::error::PluginError;
use crate::build::ordinal_of;

/// Returns a connector to addresses `POD.ANYTHING:PORT` of the pods of one cluster. It rejects every other address.
pub(super) fn forwarding(client: Client, namespace: &str, cluster: &str) -> Connector {
    let (namespace, cluster): (Arc<str>, Arc<str>) = (namespace.into(), cluster.into());
    Arc::new(move |address| {
        let (client, namespace, cluster) = (client.clone(), namespace.clone(), cluster.clone());
        Box::pin(async move {
            let (pod, port) = pod_and_port(&cluster, &address)?;
            let pods: Api<Pod> = Api::namespaced(client, &namespace);
            let forwarder = pods.portforward(pod, &[port]).await;
            let forwarder = forwarder.map_err(|error| {
                let failure = PluginError::kube("get and create", "pods/portforward", Some(&namespace), error);
                io::Error::other(failure.to_string())
            })?;
            let forwarded = ForwardedStream::new(forwarder, port);
            forwarded
                .map(|stream| Box::new(stream) as BoxedIo)
                .ok_or_else(|| io::Error::other("the port-forward has no stream for the port"))
        })
    })
}

fn pod_and_port<'a>(cluster: &str, address: &'a str) -> io::Result<(&'a str, u16)> {
    let invalid =
        || io::Error::new(io::ErrorKind::InvalidInput, format!("{address} is not a pod of cluster {cluster}"));
    let (host, port) = address.rsplit_once(':').ok_or_else(invalid)?;
    let pod = host.split('.').next().unwrap_or_default();
    ordinal_of(cluster, pod).ok_or_else(invalid)?;
    Ok((pod, port.parse().map_err(|_| invalid())?))
}

type PodError = Pin<Box<dyn Future<Output = Option<String>> + Send>>;

/// One stream. If the port cannot be reached, it ends with the error of the kubelet; without that it would only end.
struct ForwardedStream {
    stream: DuplexStream,
    error: Option<PodError>,
    forwarder: Portforwarder,
}

impl ForwardedStream {
    fn new(mut forwarder: Portforwarder, port: u16) -> Option<Self> {
        let stream = forwarder.take_stream(port)?;
        let error = forwarder.take_error(port).map(|error| Box::pin(error) as PodError);
        Some(Self { stream, error, forwarder })
    }
}

impl Drop for ForwardedStream {
    fn drop(&mut self) {
        self.forwarder.abort();
    }
}

impl AsyncRead for ForwardedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let has_bytes = buffer.filled().len() > before;
        if has_bytes {
            return read;
        }
        if let Some(error) = &mut self.error
            && let Poll::Ready(failed) = error.as_mut().poll(cx)
        {
            self.error = None;
            if let Some(message) = failed {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionRefused, message.trim().to_owned())));
            }
        }
        read
    }
}

impl AsyncWrite for ForwardedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pods_of_the_cluster_are_reached() {
        assert_eq!(pod_and_port("log", "log-2.log-nodes.ns.svc:7400").unwrap(), ("log-2", 7400));
        for bad in
            ["log-2.log-nodes.ns.svc", "log.ns.svc:7400", "other-0.x:7400", "log-x.y:7400", "log-0:70000", ":1", ""]
        {
            assert!(pod_and_port("log", bad).is_err(), "{bad:?}");
        }
    }
}
