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

{{/* Rights on what lives in a namespace. */}}
{{- define "operator.rules.namespaced" -}}
# Our own resources. A status is written by itself; a finalizer is part of the resource.
- apiGroups: [chronicle.dev]
  resources: [chronicleclusters, chronicletopics, chronicleusers]
  verbs: [get, list, watch, patch, update]
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
  verbs: [get, list, watch, create, patch, update, delete]
- apiGroups: [""]
  resources: [services, configmaps, serviceaccounts]
  verbs: [get, list, watch, create, patch, update, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, update, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, update, delete]
- apiGroups: [cert-manager.io]
  resources: [issuers, certificates]
  verbs: [get, list, watch, create, patch, update, delete]
- apiGroups: [monitoring.coreos.com]
  resources: [servicemonitors, podmonitors]
  verbs: [get, list, watch, create, patch, update, delete]
# Certificates of the nodes and of the operator's own client are read from Secrets that cert-manager or the user made;
# none is written.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch]
# Pods are restarted one by one; their labels and annotations are ours to set.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, patch, update, delete]
- apiGroups: [""]
  resources: [pods/eviction]
  verbs: [create]
# Claims grow, and are deleted when the retention policy says so and the member is gone. They are made by the stateful set.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch, patch, update, delete]
- apiGroups: ["", events.k8s.io]
  resources: [events]
  verbs: [create, patch, update]
{{- end -}}

{{/* Rights on what has no namespace; all of it is only read. */}}
{{- define "operator.rules.cluster" -}}
- apiGroups: [""]
  resources: [nodes, persistentvolumes]
  verbs: [get, list, watch]
- apiGroups: [storage.k8s.io]
  resources: [storageclasses]
  verbs: [get, list, watch]
{{- end -}}
