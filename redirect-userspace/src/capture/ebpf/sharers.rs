//! What the programs know of workloads that share a network namespace: whose cgroup is whose, and who serves what.

use aya::maps::{HashMap, MapData};
use redirect_common::maps::{PodEntry, ServiceKey, SharerKey, names};

use super::{
    super::CaptureError,
    object::Object,
    pins::Place,
    tables::{at, ignore_missing, typed},
};
use crate::{pod::CgroupOnly, sys::bpf::Plain};

pub struct Sharers {
    entries: HashMap<MapData, Plain<SharerKey>, Plain<PodEntry>>,
    services: HashMap<MapData, Plain<ServiceKey>, u32>,
}

impl Sharers {
    pub fn open(object: &mut Object) -> Result<Self, CaptureError> {
        Ok(Self {
            entries: typed(object, names::SHARERS)?,
            services: typed(object, names::SERVICES)?,
        })
    }

    pub fn get(&self, place: Place) -> Option<PodEntry> {
        self.entries
            .get(&key(place), 0)
            .ok()
            .map(|entry: Plain<PodEntry>| entry.0)
    }

    pub fn insert(
        &mut self,
        place: Place,
        entry: PodEntry,
        services: &CgroupOnly,
    ) -> Result<(), CaptureError> {
        let wanted = services.inbound.iter().map(|service| ServiceKey {
            addr: service.ip().into(),
            port: service.port(),
            padding: 0,
        });
        let wanted: Vec<_> = wanted.collect();
        for service in &wanted {
            self.services
                .insert(Plain(*service), entry.pod, 0)
                .map_err(at(names::SERVICES, "a service"))?;
        }
        self.keep_services(entry.pod, &wanted)?;
        self.set(place, entry)
    }

    pub fn set(&mut self, place: Place, entry: PodEntry) -> Result<(), CaptureError> {
        self.entries
            .insert(key(place), Plain(entry), 0)
            .map_err(at(names::SHARERS, place.cgroup))
    }

    pub fn unset(&mut self, place: Place) -> Result<(), CaptureError> {
        ignore_missing(self.entries.remove(&key(place))).map_err(at(names::SHARERS, place.cgroup))
    }

    /// Forgets a workload; gives the number that it had.
    pub fn remove(&mut self, place: Place) -> Result<Option<u32>, CaptureError> {
        let Some(entry) = self.get(place) else {
            return Ok(None);
        };
        self.unset(place)?;
        self.keep_services(entry.pod, &[])?;
        Ok(Some(entry.pod))
    }

    /// All workloads, with their numbers.
    pub fn all(&self) -> Vec<(Place, u32)> {
        let entries = self.entries.iter().filter_map(Result::ok);
        entries
            .map(|(key, entry)| {
                let place = Place {
                    netns_cookie: key.0.netns_cookie,
                    cgroup: key.0.cgroup,
                };
                (place, entry.0.pod)
            })
            .collect()
    }

    pub fn has_any(&self, netns_cookie: u64) -> bool {
        let all = self.all();
        all.iter()
            .any(|(place, _)| place.netns_cookie == netns_cookie)
    }

    fn keep_services(&mut self, number: u32, wanted: &[ServiceKey]) -> Result<(), CaptureError> {
        let present: Vec<_> = self.services.iter().filter_map(Result::ok).collect();
        for (service, _) in present
            .iter()
            .filter(|(service, of)| *of == number && !wanted.contains(&service.0))
        {
            ignore_missing(self.services.remove(service))
                .map_err(at(names::SERVICES, "a service"))?;
        }
        Ok(())
    }
}

fn key(place: Place) -> Plain<SharerKey> {
    Plain(SharerKey {
        netns_cookie: place.netns_cookie,
        cgroup: place.cgroup,
    })
}
