{{- define "chronicle.name" -}}
{{- default .Release.Name .Values.name -}}
{{- end -}}

{{- define "chronicle.labels" -}}
app.kubernetes.io/name: chronicle
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: chronicle
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "chronicle.annotations" -}}
{{- $annotations := merge (dict) .Values.annotations }}
{{- if .Values.keep }}{{ $_ := set $annotations "helm.sh/resource-policy" "keep" }}{{ end }}
{{- with $annotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "chronicle.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}
