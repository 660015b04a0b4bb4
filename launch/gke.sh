#!/usr/bin/env bash
# One run on a TPU slice of a GKE cluster, as a JobSet of one pod for each host.
#
# launch/gke.sh COMMAND --name=NAME [options] [-- flags of main.py]
#
#   apply    start the run; needs --image, --accelerator, --topology, --bucket or --claim, and flags
#   logs     follow the output of the pod of --worker=N (default 0), or of --worker=all
#   status   show the state of the run and its pods
#   delete   end the run; main.py has two minutes to save
#
#   --image=IMAGE              built with launch/Dockerfile
#   --accelerator=tpu-v6e-slice   the node label cloud.google.com/gke-tpu-accelerator
#   --topology=4x4             the node label cloud.google.com/gke-tpu-topology
#   --chips_per_host=N         of the machine type; default: 4, or all chips of a smaller slice
#   --spot                     nodes that may be pre-empted
#   --bucket=NAME              a bucket, which the cluster's Cloud Storage FUSE driver mounts, or
#   --claim=NAME               a PersistentVolumeClaim that many pods can write (Filestore)
#   --mount=DIRECTORY          where to mount it; default: /mnt/shared
#   --service_account=NAME     a Kubernetes service account with access to the bucket
#   --max_restarts=N           restarts after pre-emptions and crashes (default 100)
#   --env=NAME=VALUE           a variable for main.py; may be given several times. Compiled programs
#                              are kept in JAX_COMPILATION_CACHE_DIR; default: MOUNT/.jax_cache
#   --namespace=NAME --context=NAME   of kubectl; default: the current ones
#   --dry_run                  print the manifest and the commands, run none
#
# The --workdir of main.py must be on the mount. When a pod is pre-empted or fails, all pods start
# again, and the run continues from its checkpoint. A mistake in the command or the data (status 2)
# and SIGINT (130) end the run.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"

command=${1:-}
case $command in
  apply | logs | status | delete) shift ;;
  --help | -h) usage && exit 0 ;;
  *) fail "expected apply, logs, status or delete, found '$command'" ;;
esac
name='' image='' accelerator='' topology='' chips_per_host='' spot='' bucket='' claim=''
mount=/mnt/shared service_account='' max_restarts=100 namespace='' context='' worker=0
parse_options "name image accelerator topology chips_per_host bucket claim mount service_account
  max_restarts env namespace context worker" "spot dry_run" "$@"
require name
[[ $worker =~ ^([0-9]+|all)$ ]] || fail "expected --worker to be a number or all, found '$worker'"
# The names of hosts contain this name, and have at most 63 characters.
[[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
  fail "expected --name of at most 40 small letters, digits and hyphens, found '$name'"
for option in namespace context; do
  [[ ${!option} != *[[:space:][:cntrl:]]* ]] ||
    fail "expected --$option to be one word, found '${!option}'"
done
[[ $command == apply ]] || ((${#main_flags[@]} == 0)) ||
  fail "$command takes no flags of main.py, found '${main_flags[*]}'"
require_tool kubectl "install it and call gcloud container clusters get-credentials"

kubectl=(kubectl)
if [[ $context ]]; then kubectl+=("--context=$context"); fi
if [[ $namespace ]]; then kubectl+=("--namespace=$namespace"); fi
pods=jobset.sigs.k8s.io/jobset-name=$name

# json WORD: prints the word as a JSON string, which is also a YAML string.
json() {
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  printf '"%s"' "$text"
}

# literal WORD: as `json`, for args and env. There Kubernetes replaces $(NAME), and $$ by $.
literal() {
  json "${1//\$/\$\$}"
}

accelerators="tpu-v4-podslice tpu-v5-lite-podslice tpu-v5p-slice tpu-v6e-slice"

check_apply() {
  local product=1 size
  require image accelerator topology
  require_config
  require_number 0 max_restarts
  [[ $accelerator =~ ^tpu[-0-9] ]] ||
    fail "expected --accelerator to be a label of GKE: ${accelerators// /, }; found '$accelerator'"
  [[ " $accelerators " == *" $accelerator "* ]] ||
    note "--accelerator=$accelerator is none of the labels known here (${accelerators// /, }): where no node has it, pods stay Pending"
  [[ $topology =~ ^[1-9][0-9]{0,3}(x[1-9][0-9]{0,3}){1,2}$ ]] ||
    fail "expected --topology such as 4x4 or 4x4x8, found '$topology'"
  for size in ${topology//x/ }; do product=$((product * size)); done
  chips_per_host=${chips_per_host:-$((product < 4 ? product : 4))}
  require_number 1 chips_per_host
  ((product % chips_per_host == 0)) ||
    fail "expected --chips_per_host to divide the $product chips of $topology, found $chips_per_host"
  hosts=$((product / chips_per_host))
  [[ $bucket && ! $claim || $claim && ! $bucket ]] ||
    fail "expected one of --bucket and --claim for the workdir, found '$bucket' and '$claim'"
  [[ $bucket != gs://* ]] || fail "expected the bare name of a bucket, found '$bucket'"
  [[ $mount == /?* ]] || fail "expected --mount to begin with /, found '$mount'"
  require_shared_workdir "$mount"
  [[ "$image$accelerator$service_account$bucket$claim$mount${main_flags[*]}${variables[*]-}" != *[[:cntrl:]]* ]] ||
    fail "expected no control characters in an option or flag"
}

# lines INDENT LINE…: prints lines of the manifest.
lines() {
  local line
  for line in "${@:2}"; do printf '%*s%s\n' "$1" '' "$line"; done
}

manifest() {
  local flag variable
  lines 0 "apiVersion: jobset.x-k8s.io/v1alpha2" "kind: JobSet" "metadata:"
  lines 2 "name: $name" "annotations:"
  # All pods go to one node pool, which is one slice.
  lines 4 "alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool"
  lines 0 "spec:"
  lines 2 "failurePolicy:"
  # The pods of a run fail together, so each failure restarts all of them: status 75, a crash, a
  # pre-emption. Only the statuses in the podFailurePolicy below end the run.
  lines 4 "maxRestarts: $max_restarts" "rules:"
  lines 6 "- action: FailJobSet" "  onJobFailureReasons: [PodFailurePolicy]"
  lines 2 "replicatedJobs:"
  lines 4 "- name: slice" "  replicas: 1" "  template:"
  lines 8 "spec:"
  lines 10 "completionMode: Indexed" "completions: $hosts" "parallelism: $hosts" "backoffLimit: 0" \
    "podFailurePolicy:"
  lines 12 "rules:"
  lines 14 "- action: FailJob" "  onExitCodes:"
  lines 18 "containerName: train" "operator: In" "values: [2, 130]"
  lines 10 "template:"
  if [[ $bucket ]]; then
    lines 12 "metadata:" "  annotations:" '    gke-gcsfuse/volumes: "true"'
  fi
  lines 12 "spec:"
  lines 14 "restartPolicy: Never" "terminationGracePeriodSeconds: 120"
  if [[ $service_account ]]; then lines 14 "serviceAccountName: $(json "$service_account")"; fi
  lines 14 "nodeSelector:"
  lines 16 "cloud.google.com/gke-tpu-accelerator: $(json "$accelerator")" \
    "cloud.google.com/gke-tpu-topology: $(json "$topology")"
  if [[ $spot ]]; then
    lines 16 'cloud.google.com/gke-spot: "true"'
    lines 14 "tolerations:"
    lines 16 "- key: cloud.google.com/gke-spot" "  operator: Exists"
  fi
  lines 14 "containers:"
  lines 16 "- name: train" "  image: $(json "$image")" '  command: ["python", "-u", "main.py"]' "  args:"
  for flag in "${main_flags[@]}"; do lines 20 "- $(literal "$flag")"; done
  lines 18 "env:"
  for variable in "${variables[@]}"; do
    lines 20 "- name: ${variable%%=*}" "  value: $(literal "${variable#*=}")"
  done
  lines 18 "resources:" "  limits:" "    google.com/tpu: $chips_per_host"
  lines 18 "volumeMounts:" "  - name: shared" "    mountPath: $(json "$mount")" \
    "  - name: memory" "    mountPath: /dev/shm"
  lines 14 "volumes:"
  # Data workers hand over batches in /dev/shm, and die when a pod's default of 64 MiB is full.
  lines 16 "- name: memory" "  emptyDir:" "    medium: Memory"
  lines 16 "- name: shared"
  if [[ $bucket ]]; then
    # Checkpoints are folders that are renamed, and each pod must see at once what the others wrote.
    # gcsfuse's limit on renames and its caches would prevent both.
    lines 18 "csi:"
    lines 20 "driver: gcsfuse.csi.storage.gke.io" "volumeAttributes:"
    lines 22 "bucketName: $(json "$bucket")" \
      'mountOptions: "implicit-dirs,rename-dir-limit=200000,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0"'
  else
    lines 18 "persistentVolumeClaim:" "  claimName: $(json "$claim")"
  fi
}

case $command in
  apply)
    check_apply
    if [[ " ${variables[*]-}" != *" JAX_COMPILATION_CACHE_DIR="* ]]; then
      variables+=("JAX_COMPILATION_CACHE_DIR=${mount%/}/.jax_cache")
    fi
    text=$(manifest)
    if [[ $dry_run ]]; then
      printf '%s\n' "$text"
      echo "# given to: $(quoted "${kubectl[@]}" create --filename=-)"
    else
      "${kubectl[@]}" create --filename=- <<<"$text"
    fi
    ;;
  logs)
    if [[ $worker != all ]]; then pods+=,batch.kubernetes.io/job-completion-index=$worker; fi
    call "${kubectl[@]}" logs --follow --prefix --tail=100 --max-log-requests=256 \
      --container=train "--selector=$pods"
    ;;
  status)
    call "${kubectl[@]}" get jobset "$name"
    call "${kubectl[@]}" get pods "--selector=$pods" --output=wide
    ;;
  delete) call "${kubectl[@]}" delete jobset "$name" --ignore-not-found ;;
esac
