{{/* Name of every object of this release. 52 characters leave room for what is appended. */}}
{{- define "operator.name" -}}
{{- default .Release.Name .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "operator.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "operator.name" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name must be given when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "operator.selector" -}}
app.kubernetes.io/name: chronicle-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "operator.labels" -}}
{{ include "operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: chronicle
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "operator.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Rights on what lives in a namespace: what the operator asks for, and nothing more. */}}
{{- define "operator.rules.namespaced" -}}
# Our own resources. A status is written by itself; a finalizer is part of the resource.
- apiGroups: [chronicle.dev]
  resources: [chronicleclusters, chronicletopics, chronicleusers]
  verbs: [get, list, watch, patch]
- apiGroups: [chronicle.dev]
  resources: [chronicleclusters/status, chronicletopics/status, chronicleusers/status]
  verbs: [get, patch, update]
# Owner references that block deletion need this right where the API server checks them.
- apiGroups: [chronicle.dev]
  resources: [chronicleclusters/finalizers, chronicletopics/finalizers, chronicleusers/finalizers]
  verbs: [update]
# What a cluster is made of.
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services, configmaps, serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [cert-manager.io]
  resources: [issuers, certificates]
  verbs: [get, list, watch, create, patch, delete]
# A certificate is issued anew when its authority has changed.
- apiGroups: [cert-manager.io]
  resources: [certificates/status]
  verbs: [get, patch]
- apiGroups: [monitoring.coreos.com]
  resources: [podmonitors]
  verbs: [get, list, watch, create, patch, delete]
# Secrets are made by cert-manager or by people. The operator reads those of its clusters, watches for changes of those with its
# label, and deletes that of a user who is removed. Kubernetes cannot narrow this to names that are not known beforehand:
# confine the operator to namespaces (watchNamespaces) where this is too much.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch, delete]
# Pods are started anew one by one, by deleting them.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, delete]
# Claims are made by the stateful set. They grow, and are deleted when the retention policy says so and the member is gone.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch, patch, delete]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}

{{/* Rights on what has no namespace; all of it is only read. */}}
{{- define "operator.rules.cluster" -}}
# Whether the machine of a pod or of a volume is gone.
- apiGroups: [""]
  resources: [nodes]
  verbs: [get, list]
- apiGroups: [""]
  resources: [persistentvolumes]
  verbs: [get]
# Whether the class of a volume that does not come, or the issuer of a certificate, is there: for what conditions say.
- apiGroups: [storage.k8s.io]
  resources: [storageclasses]
  verbs: [get]
- apiGroups: [cert-manager.io]
  resources: [clusterissuers]
  verbs: [get]
{{- end -}}
